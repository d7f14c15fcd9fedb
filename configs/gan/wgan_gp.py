r"""WGAN-GP, arXiv:1704.00028.

python -m experiments.train --config=configs/gan/wgan_gp.py:cifar10 --workdir=runs/wgan_gp
Paper: CIFAR-10 ResNet, Table 3: Inception score 7.86 +- .07, 8.42 +- .10 with labels
(--config.args.n_classes=10). Ours: RESULTS.md.
"""

import ml_collections

VARIANTS = ("cifar10", "mnist", "mnist16", "digits", "smoke")


def get_config(variant="cifar10"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "gan.wgan_gp"  # jaxgen/models/gan/wgan_gp.py
  c.args = dict(  # keywords of its build()
    image_shape=(32, 32, 3),
    n_classes=0,
    net="ResNet",
    gen_args=dict(channels=(128, 128, 128, 128), dtype="float32"),
    critic_args=dict(channels=(128, 128, 128, 128), downs=2, dtype="float32"),
    z_dim=128,
    gp_weight=10.0,
    n_critic=5,
    gen_rows=2,
    class_weights=(1.0, 0.1),
    tx=dict(
      lr=2e-4,
      b1=0.0,
      b2=0.9,
      eps=1e-8,
      weight_decay=0.0,
      clip=0.0,
      warmup=0,
      decay="linear",
      steps=100_000,
    ),
    ema=0.0,
  )
  c.init_from = dict()
  c.data = dict(
    source="tfds:cifar10", batch_size=64, image_size=0, flip=False, workers=2, timeout=600
  )
  c.train = dict(
    steps=100_000, log_every=100, sample_every=1000, eval_every=0, eval_examples=1000,
    checkpoint_every=1000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "mnist":
    c.args.image_shape = (28, 28, 1)
    c.args.gen_args.channels = c.args.critic_args.channels = (64, 64, 64)
    c.args.tx.steps = c.train.steps = 20_000
    c.data.source = "tfds:mnist"
  elif variant == "mnist16":
    c.args.update(image_shape=(16, 16, 1), z_dim=32)
    c.args.gen_args.channels, c.args.critic_args.channels = (32, 32, 16), (16, 32, 32)
    c.args.tx.update(lr=5e-4, steps=4000)
    c.data.update(source="tfds:mnist", image_size=16, batch_size=32, workers=0)
    c.train.update(steps=4000, sample_every=1000)
  elif variant == "digits":
    c.args.update(image_shape=(8, 8, 1), n_classes=10, z_dim=16)
    c.args.gen_args.channels, c.args.critic_args.channels = (32, 32), (32, 32, 32)
    c.args.tx.update(lr=5e-4, steps=3000)
    c.data.update(source="digits", workers=0)
    c.train.update(steps=3000)
  elif variant == "smoke":
    c.args.update(image_shape=(8, 8, 1), n_classes=10, z_dim=8, n_critic=2)
    c.args.gen_args.channels, c.args.critic_args.channels = (8, 8), (8, 8, 8)
    c.args.tx.steps = 4
    c.data.update(source="digits", batch_size=16, workers=0)
    c.train.update(steps=4, log_every=2, sample_every=4, checkpoint_every=2)
  return c
