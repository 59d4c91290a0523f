"""AdamW with a common mistake. An audition must find it before it trains anything."""


def broken(g, m, v, t, *, beta1=0.9, beta2=0.95, eps=1e-15):
    """m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  u = m_hat / (sqrt(v_hat) + eps)"""
    m = beta1 * m + (1 - beta1) * g    # this makes a new tensor, so the state never changes
    v.lerp_(g.square(), 1 - beta2)
    m_hat = m / (1 - beta1**t)
    v_hat = v / (1 - beta2**t)
    return m_hat / (v_hat.sqrt() + eps)
