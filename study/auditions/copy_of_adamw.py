"""AdamW under another name. An audition must find that it is the same as AdamW."""


def copy_of_adamw(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  u = m_hat / (sqrt(v_hat) + eps)"""
    m.lerp_(g, 1 - beta1)
    v.lerp_(g.square(), 1 - beta2)
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return m_hat / (v_hat.sqrt() + eps)
