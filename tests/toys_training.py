"""A toy recipe that several tests of training share."""

TOY = """
network = "rdmc_lite"
recursion_weights = [0.5, 1.0]
validation = ["set"]
checkpoint_every = 2
ema = 0.5
{more}
[arguments]
width = 24
encoder = [1, 1]
decoder = [1]
[loss]
l1 = 1.0
ssim = 0.2
[[stages]]
steps = 4
patch = 16
batch = 2
[[stages]]
steps = 2
patch = 24
batch = 2
recursions = 2
[[sources]]
pairs = "set"
[[sources]]
photos = ["set/clean"]
[sources.rain]
scratch = 1.0
"""
