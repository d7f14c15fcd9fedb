r"""IWAE, arXiv:1509.00519.

python -m experiments.train --config=configs/vae/iwae.py:mnist --workdir=runs/iwae
Paper: Table 1, MNIST, NLL in nats by 5000 draws, one layer of latents: 84.78 (K = 50), 85.54
(K = 5), 86.76 (K = 1, the VAE); two layers 82.90. OMNIGLOT, K = 50: 104.67 and 103.38.
Ours: RESULTS.md.
Other K: --config.args.samples=5. Where MNIST is at hand as files: --config.data.source=npz:PATH.
`omniglot` wants data/omniglot/train.npz and test.npz with `image`, uint8 [N, 28, 28, 1].
"""

import ml_collections

VARIANTS = (
  "mnist", "mnist_two_layers", "omniglot", "mnist_quick", "mnist_quick_k5", "mnist_quick_k1",
  "mnist16", "smoke",
)  # fmt: skip


def get_config(variant="mnist"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "vae.iwae"  # jaxgen/models/vae/iwae.py
  c.args = dict(  # keywords of its build()
    image_shape=(28, 28, 1),
    z_dims=(50,),
    widths=(200,),
    samples=50,
    gradient="iwae",
    pass_updates=3000,
    tx=dict(
      lr=1e-3, b1=0.9, b2=0.999, eps=1e-4, skip=0.0, final=0.0, weight_decay=0.0, clip=0.0,
      warmup=0, decay="", steps=0,
    ),
    ema=0.0,
  )  # fmt: skip
  c.init_from = dict()
  c.data = dict(
    source="tfds:mnist", batch_size=20, image_size=0, flip=False, workers=2, timeout=600
  )
  c.train = dict(  # 3280 passes
    steps=9_840_000, log_every=1000, sample_every=100_000, eval_every=100_000, eval_examples=10_000,
    checkpoint_every=100_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "mnist_two_layers":
    c.args.update(z_dims=(100, 50), widths=(200, 100))
  elif variant == "omniglot":
    c.args.pass_updates = 1218  # 24,345 images
    c.data.source = "npz:data/omniglot"
    c.train.steps = 3280 * 1218
  elif variant in ("mnist_quick", "mnist_quick_k5", "mnist_quick_k1"):  # 1/750 of the schedule
    c.args.update(samples={"k5": 5, "k1": 1}.get(variant[-2:], 50), pass_updates=4)
    c.args.tx.update(lr=4e-3, eps=1e-8)
    c.train.update(steps=13_120, sample_every=0, eval_every=6560, checkpoint_every=6560)
  elif variant == "mnist16":
    c.args.update(image_shape=(16, 16, 1), pass_updates=6)
    c.data.update(image_size=16, workers=0)
    c.train.update(steps=20_000, sample_every=10_000, eval_every=10_000, checkpoint_every=10_000)
  elif variant == "smoke":
    c.args.update(image_shape=(8, 8, 1), z_dims=(4, 3), widths=(8, 8), samples=3, gradient="dreg")
    c.data.update(source="digits", batch_size=16, workers=0)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
