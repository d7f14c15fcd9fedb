r"""The noisy classifier that guides ADM, arXiv:2105.05233.

python -m experiments.train --config=configs/representation/noisy_classifier.py:imagenet64 \
    --workdir=runs/noisy_classifier
Paper: App. I, Table 12; it gives no accuracy. Ours: RESULTS.md.

imagenet64 needs data.source, a folder of train.npz or train.array_record with `image` and `label`.
"""

import ml_collections

VARIANTS = ("imagenet64", "imagenet256", "mnist16", "smoke")


def get_config(variant="imagenet64"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "representation.noisy_classifier"  # jaxgen/models/representation/noisy_classifier.py
  c.args = dict(  # keywords of its build()
    image_shape=(64, 64, 3),
    n_classes=1000,
    net_args=dict(
      channels=128,
      multipliers=(1, 2, 3, 4),
      n_res_blocks=4,
      attention=(32, 16, 8),
      head_channels=64,
      scale_shift=True,
      resblock_updown=True,
      dropout=0.0,
      dtype="float32",
    ),
    schedule="cosine",
    T=1000,
    tx=dict(
      lr=6e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.2, clip=0.0, warmup=0, decay="linear",
      steps=300_000,
    ),
    ema=0.0,
    accumulate=1,
  )  # fmt: skip
  c.init_from = dict()
  c.data = dict(
    source="npz:data/imagenet64", batch_size=1024, image_size=64, flip=True, workers=2, timeout=600
  )
  c.train = dict(
    steps=300_000, log_every=100, sample_every=0, eval_every=0, eval_examples=10_000,
    checkpoint_every=5_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "imagenet64":
    return c
  if variant == "imagenet256":
    c.args.update(image_shape=(256, 256, 3), schedule="linear")
    c.args.net_args.update(multipliers=(1, 1, 2, 2, 4, 4), n_res_blocks=2)
    c.args.tx.update(lr=3e-4, weight_decay=0.05, steps=500_000)
    c.data.update(source="npz:data/imagenet256", image_size=256, batch_size=256)
    c.train.steps = 500_000
    return c

  c.args.n_classes = 10
  c.args.tx.update(lr=2e-3, weight_decay=0.05)
  c.data.update(flip=False, workers=0)
  if variant == "mnist16":  # as long as three minutes on two CPU cores
    c.args.image_shape = (16, 16, 1)
    c.args.net_args.update(
      channels=16, multipliers=(1, 2, 4), n_res_blocks=1, attention=(), head_channels=16
    )
    c.data.update(source="tfds:mnist", image_size=16, batch_size=64)
    c.args.tx.steps = c.train.steps = 1000
    c.train.checkpoint_every = 500
  elif variant == "smoke":
    c.args.image_shape = (8, 8, 1)
    c.args.net_args.update(
      channels=8, multipliers=(1, 2), n_res_blocks=1, attention=(), head_channels=8
    )
    c.args.tx.steps = c.train.steps = 4
    c.data.update(source="digits", batch_size=16, image_size=0)
    c.train.update(log_every=2, checkpoint_every=2)
  return c
