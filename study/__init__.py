"""From finished runs to tables, figures and verdicts on the paper's claims. Run it with `python -m study`."""
