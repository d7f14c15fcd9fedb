r"""Semi-supervised VAE (M2), arXiv:1406.5298.

python -m experiments.train --config=configs/vae/m2.py:mnist --workdir=runs/m2
Paper: Table 1, MNIST with 100 labels, 11.97 % test error (M1+M2: 3.33 %). Ours: RESULTS.md.
Where MNIST is at hand as files: --config.data.source=few_labels:100:npz:PATH.
"""

import ml_collections

VARIANTS = ("mnist", "mnist16", "mnist16_labels", "smoke")


def get_config(variant="mnist"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "vae.m2"  # jaxgen/models/vae/m2.py
  c.args = dict(  # keywords of its build()
    image_shape=(28, 28, 1),
    n_classes=10,
    n_labelled=100,
    n_unlabelled=59_900,  # the paper has 49,900
    alpha=0.1,
    z_dim=50,
    width=500,
    tx=dict(
      lr=3e-4, b1=0.9, b2=0.999, eps=1e-8, skip=0.0, final=0.0, weight_decay=0.0, clip=0.0,
      warmup=0, decay="", steps=0,
    ),
    ema=0.0,
  )  # fmt: skip
  c.init_from = dict()
  c.data = dict(
    source="few_labels:100:tfds:mnist", batch_size=100, image_size=0, flip=False, workers=2,
    timeout=600,
  )  # fmt: skip
  c.train = dict(
    steps=300_000, log_every=500, sample_every=10_000, eval_every=10_000, eval_examples=10_000,
    checkpoint_every=10_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant in ("mnist16", "mnist16_labels"):
    c.args.update(image_shape=(16, 16, 1), alpha=1.0)
    c.args.tx.lr = 1e-3
    c.data.update(image_size=16, workers=0)
    c.train.update(steps=5000, sample_every=2500, eval_every=2500, checkpoint_every=2500)
    if variant == "mnist16_labels":  # what the 100 labels alone teach the classifier
      c.args.alpha = 1e5
      c.train.steps = 1000
  elif variant == "smoke":
    c.args.update(image_shape=(8, 8, 1), n_labelled=20, n_unlabelled=1598, z_dim=3, width=16)
    c.data.update(source="few_labels:20:digits", batch_size=16, workers=0)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
