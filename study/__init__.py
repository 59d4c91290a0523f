"""From finished runs to tables, figures and verdicts on the paper's claims: python -m study."""
