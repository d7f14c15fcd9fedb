r"""NVAE, arXiv:2007.03898.

python -m experiments.train --config=configs/vae/nvae.py:mnist --workdir=runs/nvae
Paper: Table 1, without flows 78.01 nats on MNIST and 2.93 bits/dim on CIFAR-10, with flows 78.19
and 2.91, and 2.03 on CelebA 64. Ours: RESULTS.md. `cifar10`, `celeba64` and `cifar16` have flows.
`celeba64` wants data/celeba64/train.npz and test.npz with `image`, uint8 [N, 64, 64, 3].
"""

import ml_collections

VARIANTS = ("mnist", "cifar10", "celeba64", "mnist16", "cifar16", "smoke")


def get_config(variant="mnist"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "vae.nvae"  # jaxgen/models/vae/nvae.py
  c.args = dict(  # keywords of its build()
    image_shape=(28, 28, 1),
    decoder="bernoulli",
    mixtures=10,
    bits=8,
    groups=(5, 10),
    z_channels=20,
    width=32,
    blocks=2,
    cells=3,
    group_cells=2,
    flows=0,
    penalty=1e-2,
    penalty_start=1e-2,
    kl_warmup=18_000,
    tx=dict(
      lr=1e-2, b1=0.9, b2=0.999, eps=1e-3, weight_decay=3e-4, clip=0.0, skip=0.0, warmup=750,
      decay="cosine", final=1e-4, steps=60_000,
    ),
  )  # fmt: skip
  c.init_from = dict()
  c.data = dict(
    source="tfds:mnist", batch_size=400, image_size=0, flip=False, workers=2, timeout=600
  )
  c.train = dict(
    steps=60_000, log_every=500, sample_every=10_000, eval_every=10_000, eval_examples=10_000,
    checkpoint_every=5000, seed=0, parallel="jit",
  )  # fmt: skip
  colour = dict(decoder="logistic_mixture", blocks=1, cells=2, flows=1)
  if variant == "cifar10":
    c.args.update(image_shape=(32, 32, 3), groups=(30,), width=128, kl_warmup=23_400, **colour)
    c.args.tx.update(warmup=975, steps=78_000)
    c.data.update(source="tfds:cifar10", batch_size=256, flip=True)
    c.train.steps = 78_000
  elif variant == "celeba64":
    c.args.update(image_shape=(64, 64, 3), groups=(5, 10, 20), width=64, kl_warmup=34_317, **colour)
    c.args.update(penalty=0.1, penalty_start=0.1)
    c.args.tx.update(warmup=6355, steps=114_390)
    c.data.update(source="npz:data/celeba64", batch_size=128, flip=True)
    c.train.steps = 114_390
  elif variant in ("mnist16", "cifar16"):
    c.args.update(groups=(2, 2), z_channels=4, width=8, blocks=1, cells=2, group_cells=1)
    c.args.update(image_shape=(16, 16, 1), kl_warmup=600)
    c.args.tx.update(warmup=25, steps=2000)
    c.data.update(source="tfds:mnist", image_size=16, batch_size=64, workers=0)
    c.train.update(
      steps=2000, log_every=50, sample_every=1000, eval_every=1000, eval_examples=1000,
      checkpoint_every=500,
    )  # fmt: skip
    if variant == "cifar16":
      c.args.update(image_shape=(16, 16, 3), width=12, **colour)
      c.data.update(source="tfds:cifar10", flip=True)
  elif variant == "smoke":
    c.args.update(image_shape=(8, 8, 1), groups=(2,), z_channels=2, width=4, blocks=0, cells=1)
    c.args.update(group_cells=1, kl_warmup=2)
    c.args.tx.update(warmup=0, decay="", steps=0)
    c.data.update(source="digits", batch_size=16, workers=0)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
