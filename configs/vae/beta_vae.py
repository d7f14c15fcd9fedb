r"""beta-VAE, https://openreview.net/forum?id=Sy2fzU9gl

python -m experiments.train --config=configs/vae/beta_vae.py:dsprites --workdir=runs/beta_vae
Paper: dSprites, beta = 4, disentanglement metric 99.23 %. Ours: RESULTS.md.
`olivetti` wants data/olivetti/train.npz and test.npz with `image`, uint8 [N, 64, 64, 1].
"""

import ml_collections

VARIANTS = (
  "dsprites", "dsprites_quick", "dsprites_quick_beta1", "dsprites_quick_beta16", "olivetti",
  "mnist16", "smoke",
)  # fmt: skip


def get_config(variant="dsprites"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "vae.beta_vae"  # jaxgen/models/vae/beta_vae.py
  c.args = dict(  # keywords of its build()
    image_shape=(64, 64, 1),
    decoder="bernoulli",
    z_dim=10,
    widths=(32, 32, 32, 32),
    dense=(256, 256),
    beta=4.0,
    kl_warmup=0,
    tx=dict(
      lr=5e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=0.0, skip=0.0, warmup=0, decay="",
      final=0.0, steps=0,
    ),
    ema=0.0,
  )  # fmt: skip
  c.init_from = dict()
  c.data = dict(source="dsprites", batch_size=64, image_size=0, flip=False, workers=2, timeout=600)
  c.train = dict(
    steps=300_000, log_every=500, sample_every=10_000, eval_every=10_000, eval_examples=10_000,
    checkpoint_every=10_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant.startswith("dsprites_quick"):
    c.args.beta = {"beta1": 1.0, "beta16": 16.0}.get(variant.split("_")[-1], 4.0)
    c.args.update(widths=(16, 16, 32, 32), kl_warmup=500)
    c.args.tx.lr = 1e-3
    c.train.update(steps=1500, sample_every=1500, eval_every=1500, checkpoint_every=500)
  elif variant == "olivetti":
    c.args.update(decoder="gaussian")
    c.data.update(source="npz:data/olivetti", workers=0)
    c.train.update(steps=2000, sample_every=1000, eval_every=1000, checkpoint_every=1000)
  elif variant == "mnist16":
    c.args.update(image_shape=(16, 16, 1), widths=(32, 32), dense=(256,))
    c.data.update(source="tfds:mnist", image_size=16, workers=0)
    c.train.update(steps=10_000, sample_every=5000, eval_every=5000, checkpoint_every=5000)
  elif variant == "smoke":
    c.args.update(
      image_shape=(8, 8, 1), decoder="gaussian", z_dim=3, widths=(8,), dense=(16,), kl_warmup=2
    )
    c.data.update(source="digits", batch_size=16, workers=0)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
