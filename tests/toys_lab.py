"""Independent referees that several tests of the lab share."""

from scipy.ndimage import gaussian_filter


def ssim_in_double(a, b):
    """SSIM from its definition, with SciPy's Gaussian filter, in double precision."""

    def blur(x):
        return gaussian_filter(x, sigma=(0, 0, 1.5, 1.5), truncate=5 / 1.5)[..., 5:-5, 5:-5]

    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    top = (2 * mean_a * mean_b + 1e-4) * (2 * cov + 9e-4)
    return (top / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))).mean()
