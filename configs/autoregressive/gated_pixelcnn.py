r"""Gated PixelCNN, arXiv:1606.05328, the prior over the codes of a VQ-VAE (V11), arXiv:1711.00937.

python -m experiments.train --config=configs/autoregressive/gated_pixelcnn.py:olivetti \
    --workdir=runs/prior --config.init_from="{'first_stage': 'runs/vq_vae'}"
Paper: VQ-VAE, Sec. 4.2, shows samples of ImageNet by class and prints no number. Ours: RESULTS.md.
experiments/two_stage.py trains both stages. Variants are those of configs/vae/vq_vae.py.
`imagenet128` wants data/imagenet128/train.npz and test.npz with `image`, uint8 [N, 128, 128, 3],
and `label`; `olivetti` data/olivetti/train.npz and test.npz, uint8 [N, 64, 64, 1].
"""

import pathlib

import ml_collections

from jaxgen.core import config

FIRST = pathlib.Path(__file__).parents[1] / "vae/vq_vae.py"
VARIANTS = ("imagenet128", "olivetti", "cifar16", "digits", "smoke")


def get_config(variant="imagenet128"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  first = config.read(f"{FIRST}:{variant}")
  c = ml_collections.ConfigDict()
  c.model = "autoregressive.gated_pixelcnn"  # jaxgen/models/autoregressive/gated_pixelcnn.py
  c.args = dict(  # keywords of its build()
    image_shape=first.args.image_shape,
    first_stage=dict(model=first.model, args=first.args.to_dict()),
    n_classes=1000,
    width=128,
    depth=15,
    kernel=5,
    first_kernel=7,
    tx=dict(
      lr=3e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=0.0, skip=0.0, warmup=0,
      decay="", final=0.0, steps=0,
    ),
    ema=0.0,
  )  # fmt: skip
  c.init_from = dict()
  c.data = dict(
    source="npz:data/imagenet128", batch_size=128, image_size=0, flip=False, workers=2, timeout=600
  )
  c.train = dict(
    steps=250_000, log_every=500, sample_every=10_000, eval_every=10_000, eval_examples=10_000,
    checkpoint_every=10_000, seed=0, parallel="jit",
  )  # fmt: skip
  small = dict(n_classes=0, width=64, depth=5, kernel=3, first_kernel=5)
  if variant == "olivetti":  # 8x8 codes of 360 faces, which more steps overfit
    c.args.update(small)
    c.data.update(source="npz:data/olivetti", batch_size=32, flip=True, workers=0)
    c.train.update(steps=500, log_every=50, eval_every=100, checkpoint_every=250)
    c.train.sample_every = 250
  elif variant == "cifar16":  # 4x4 codes
    c.args.update(small)
    c.data.update(source="tfds:cifar10", image_size=16, batch_size=64, flip=True, workers=0)
    c.train.update(steps=4000, sample_every=2000, eval_every=2000, checkpoint_every=2000)
  elif variant in ("digits", "smoke"):  # 2x2 codes
    c.args.update(small, n_classes=10)
    c.data.update(source="digits", batch_size=32, workers=0)
    c.train.update(steps=4000, log_every=100, sample_every=1000, eval_every=1000)
    c.train.checkpoint_every = 1000
  if variant == "smoke":
    c.args.update(width=8, depth=2, kernel=3, first_kernel=3)
    c.data.batch_size = 16
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
