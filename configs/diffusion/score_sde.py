r"""Score SDE, arXiv:2011.13456.

python -m experiments.train --config=configs/diffusion/score_sde.py:cifar10_vp --workdir=runs/sde
Paper: CIFAR-10, Table 3, FID and Inception score: DDPM++ cont. (VP) 2.55, 9.58; (sub-VP) 2.61,
9.56; NCSN++ cont. (VE) 2.38, 9.83. Table 2, bits/dim: VP 3.16, sub-VP 3.02. Ours: RESULTS.md.
"""

import ml_collections

VARIANTS = ("cifar10_vp", "cifar10_ve", "cifar10_subvp", "mnist16", "smoke")


def get_config(variant="cifar10_vp"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "diffusion.score_sde"  # jaxgen/models/diffusion/score_sde.py
  c.args = dict(  # keywords of its build()
    image_shape=(32, 32, 3),
    n_classes=0,
    label_dropout=0.1,
    net="NCSNpp",
    net_args=dict(
      channels=128,
      multipliers=(1, 2, 2, 2),
      n_res_blocks=4,
      attention=(16,),
      embedding="positional",
      noise_multiplier=1,
      encoder="standard",
      decoder="standard",
      resample_filter=(1, 1),
      dropout=0.1,
      augment=0,
      dtype="float32",
    ),
    path="VP",
    path_args=dict(beta_min=0.1, beta_max=20.0),
    tx=dict(
      lr=2e-4,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.0,
      clip=1.0,
      warmup=5000,
      decay="",
      steps=0,
    ),
    ema=dict(profile="fixed", decay=0.9999),
    sampler=dict(name="euler_maruyama", steps=1000),
    accumulate=1,
    guidance_weight=0.0,
    ode_steps=50,
  )
  c.init_from = dict()
  c.data = dict(
    source="tfds:cifar10", batch_size=128, image_size=0, flip=True, workers=2, timeout=600
  )
  c.train = dict(
    steps=1_300_000, log_every=100, sample_every=10_000, eval_every=50_000, eval_examples=1000,
    checkpoint_every=5_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "cifar10_vp":
    return c
  if variant == "cifar10_subvp":
    c.args.path = "SubVP"
    return c
  if variant == "cifar10_ve":  # the sigmas of images in [-1, 1]: twice 0.01 and 50
    c.args.path, c.args.path_args = "VE", dict(sigma_min=0.02, sigma_max=100.0)
    c.args.net_args.update(
      embedding="fourier", noise_multiplier=2, encoder="residual", resample_filter=(1, 3, 3, 1)
    )
    c.args.ema.decay = 0.999
    c.args.sampler = dict(name="predictor_corrector", steps=1000, snr=0.16)
    return c

  c.args.net = "UNet"
  c.args.ema = dict(profile="warmup", decay=0.999)
  c.args.tx.update(lr=1e-3, warmup=100)
  c.args.sampler = dict(name="edm", steps=25, grid="karras")  # 49 evaluations
  c.data.flip, c.data.workers = False, 0
  if variant == "mnist16":  # 0.7M parameters, at the budget of ddpm.py:mnist16
    c.args.image_shape = (16, 16, 1)
    c.args.net_args = dict(
      channels=16, multipliers=(1, 2, 4), n_res_blocks=1, attention=(4,), dropout=0.0
    )
    c.args.ode_steps = 25
    c.data.update(source="tfds:mnist", image_size=16, batch_size=64)
    c.train.update(
      steps=2000, sample_every=500, eval_every=2000, eval_examples=500, checkpoint_every=500
    )
  elif variant == "smoke":
    c.args.update(image_shape=(8, 8, 1), n_classes=10, ode_steps=2)
    c.args.net_args = dict(channels=8, multipliers=(1, 2), n_res_blocks=1, attention=())
    c.args.sampler.steps, c.args.tx.warmup = 2, 0
    c.data.update(source="digits", batch_size=16)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
