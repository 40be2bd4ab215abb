"""das_jax: continual domain-adaptive pre-training of masked language models, in JAX.

Arrays carry their shape in their name. The letters, used everywhere:

    B batch    T tokens     D model    F feed-forward    H heads     K head size
    G heads of keys and values, which H / G heads of queries share
    L layers   V vocabulary M masked positions per example           S views      U units
"""

__version__ = "0.1.0"
