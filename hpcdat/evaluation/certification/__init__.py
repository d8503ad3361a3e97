"""Certified robustness by randomised smoothing: Cohen et al. 2019, and Table 2 of the DAT paper.

The smoothed classifier g(x) = argmax_c P(f(x + eta) = c), eta ~ N(0, sigma^2 I), is constant within an l2
ball around x. Sampling around an image gives counts; probability bound and radius are computed from them
afterwards, so the same counts serve for any alpha.
"""
