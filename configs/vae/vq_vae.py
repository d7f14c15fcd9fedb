r"""VQ-VAE, arXiv:1711.00937: the first stage. experiments/two_stage.py trains a prior as well.

python -m experiments.train --config=configs/vae/vq_vae.py:cifar10 --workdir=runs/vq_vae
Paper: Sec. 4.1, CIFAR-10, 4.67 bits/dim, of ten codes a position and a decoder that is a density;
its example for CIFAR-10, which this is, prints a reconstruction error. Ours: RESULTS.md.
`imagenet128` wants data/imagenet128/train.npz and test.npz with `image`, uint8 [N, 128, 128, 3],
`olivetti` data/olivetti/train.npz and test.npz, uint8 [N, 64, 64, 1].
"""

import ml_collections

VARIANTS = ("cifar10", "imagenet128", "olivetti", "cifar16", "digits", "smoke")


def get_config(variant="cifar10"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "vae.vq_vae"  # jaxgen/models/vae/vq_vae.py
  c.args = dict(  # keywords of its build()
    image_shape=(32, 32, 3),
    n_codes=512,
    code_dim=64,
    width=128,
    res_width=32,
    n_res_blocks=2,
    downsamples=2,
    update="ema",
    beta=0.25,
    decay=0.99,
    revive=0.0,
    data_variance=0.253,
    tx=dict(
      lr=3e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=0.0, skip=0.0, warmup=0,
      decay="", final=0.0, steps=0,
    ),
    ema=0.0,
  )  # fmt: skip
  c.init_from = dict()
  c.data = dict(
    source="tfds:cifar10", batch_size=32, image_size=0, flip=False, workers=2, timeout=600
  )
  c.train = dict(
    steps=100_000, log_every=500, sample_every=0, eval_every=0, eval_examples=10_000,
    checkpoint_every=10_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "imagenet128":  # Sec. 4.1 and 4.2: 32x32 codes, the codebook by gradients
    c.args.update(image_shape=(128, 128, 3), width=256, res_width=256, update="gradient")
    c.args.tx.lr = 2e-4
    c.data.update(source="npz:data/imagenet128", batch_size=128)
    c.train.steps = 250_000
  elif variant == "olivetti":  # 8x8 codes of 360 faces
    c.args.update(
      image_shape=(64, 64, 1), n_codes=128, code_dim=32, width=64, downsamples=3, revive=0.1,
      data_variance=0.107,
    )  # fmt: skip
    c.args.tx.lr = 1e-3
    c.data.update(source="npz:data/olivetti", flip=True, workers=0)
    c.train.update(steps=1500, log_every=100, checkpoint_every=500)
  elif variant == "cifar16":  # 4x4 codes
    c.args.update(image_shape=(16, 16, 3), n_codes=256, width=64, revive=0.1)
    c.args.tx.lr = 1e-3
    c.data.update(image_size=16, batch_size=64, flip=True, workers=0)
    c.train.update(steps=6000, log_every=100, checkpoint_every=1000)
  elif variant in ("digits", "smoke"):  # 2x2 codes
    c.args.update(image_shape=(8, 8, 1), n_codes=64, code_dim=16, width=64, revive=0.1)
    c.args.data_variance = 0.56
    c.data.update(source="digits", workers=0)
    c.train.update(steps=4000, log_every=100, checkpoint_every=1000)
  if variant == "smoke":
    c.args.update(n_codes=8, code_dim=4, width=8, res_width=4, n_res_blocks=1)
    c.data.batch_size = 16
    c.train.update(steps=4, log_every=2, checkpoint_every=2)
  return c
