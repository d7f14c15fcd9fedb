r"""CVAE, https://proceedings.neurips.cc/paper/2015/hash/8d55a249e6baa5c06772297520da2051-Abstract.html

python -m experiments.train --config=configs/vae/conditional_vae.py:mnist_quadrants --workdir=runs/c
Paper: Table 1, MNIST, negative conditional log-likelihood in nats with 1, 2 and 3 quadrants given.
Test, from weighted draws: 63.91, 44.73 and 20.95; baseline: 99.75, 62.18 and 25.99 (`baseline/loss`
here). Ours: RESULTS.md. `quadrants:2:...` and `quadrants:3:...` are the other two columns.
`omniglot_to_mnist` wants data/omniglot and data/mnist with train.npz and test.npz, `image` in each.
"""

import ml_collections

VARIANTS = ("mnist_quadrants", "mnist16", "omniglot_to_mnist", "smoke")


def get_config(variant="mnist_quadrants"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "vae.conditional_vae"  # jaxgen/models/vae/conditional_vae.py
  c.args = dict(  # keywords of its build()
    image_shape=(28, 28, 1),
    target="missing",
    decoder="bernoulli",
    z_dim=200,
    width=500,
    samples=1,
    alpha=1.0,
    tx=dict(
      lr=1e-3,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.0,
      clip=0.0,
      skip=0.0,
      warmup=0,
      decay="",
      final=0.0,
      steps=0,
    ),
    ema=0.0,
  )
  c.init_from = dict()
  c.data = dict(
    source="quadrants:1:tfds:mnist", batch_size=128, image_size=0, flip=False, workers=2,
    timeout=600,
  )  # fmt: skip
  c.train = dict(
    steps=50_000, log_every=500, sample_every=10_000, eval_every=10_000, eval_examples=10_000,
    checkpoint_every=10_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "mnist16":
    c.args.update(image_shape=(16, 16, 1), z_dim=50, width=256)
    c.data.update(source="quadrants:2:tfds:mnist", image_size=16, workers=0)
    c.train.update(steps=20_000, sample_every=5000, eval_every=5000, checkpoint_every=5000)
  elif variant == "omniglot_to_mnist":
    c.args.update(image_shape=(16, 16, 1), target="all", z_dim=50, width=256)
    c.data.update(source="pair:npz:data/omniglot->npz:data/mnist", image_size=16, workers=0)
    c.train.update(steps=20_000, sample_every=5000, eval_every=5000, checkpoint_every=5000)
  elif variant == "smoke":
    c.args.update(image_shape=(8, 8, 1), z_dim=3, width=16)
    c.data.update(source="quadrants:2:digits", batch_size=16, workers=0)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
