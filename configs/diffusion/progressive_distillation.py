r"""Progressive distillation, arXiv:2202.00512.

python -m experiments.train --config=configs/diffusion/progressive_distillation.py:cifar10 \
    --workdir=runs/teacher
python -m experiments.distill --teacher=runs/teacher --from_steps=8192 --to_steps=1 \
    --config=configs/diffusion/progressive_distillation.py:cifar10_student --workdir=runs/pd
The variants without _student train the first teacher, the others one student after another.
Paper: CIFAR-10, Table 2: FID 2.57, 3.00, 4.51 and 9.12 with 8, 4, 2 and 1 steps; ImageNet 64x64
(survey Table 7): 8.95 and 15.39 with 2 and 1. Ours: RESULTS.md.
"""

import ml_collections

VARIANTS = ("cifar10", "cifar10_student", "mnist16", "mnist16_student", "smoke")


def get_config(variant="cifar10"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "diffusion.progressive_distillation"  # jaxgen/models/diffusion/
  c.args = dict(  # keywords of its build()
    image_shape=(32, 32, 3),
    n_classes=0,
    label_dropout=0.1,
    net="ADM",
    net_args=dict(
      channels=256,
      multipliers=(1, 1, 1),
      n_res_blocks=3,
      attention=(16, 8),
      head_channels=0,
      heads=1,
      scale_shift=True,
      resblock_updown=True,
      dropout=0.2,
      dtype="float32",
    ),
    steps=0,  # of a student; experiments/distill.py sets it
    tx=dict(
      lr=2e-4,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=1e-3,
      clip=1.0,
      warmup=1000,
      decay="",
      steps=0,
    ),
    ema=dict(profile="fixed", decay=0.9999),
    sampler=dict(name="ddim", steps=1024),
    accumulate=1,
    guidance_weight=0.0,
    ode_steps=100,
  )
  c.init_from = dict()
  c.data = dict(
    source="tfds:cifar10", batch_size=128, image_size=0, flip=True, workers=2, timeout=600
  )
  c.train = dict(
    steps=800_000, log_every=100, sample_every=10_000, eval_every=50_000, eval_examples=1000,
    checkpoint_every=5_000, seed=0, parallel="jit",
  )  # fmt: skip
  if not variant.startswith("cifar10"):
    c.args.net = "UNet"
    c.args.net_args = dict(channels=16, multipliers=(1, 2, 4), n_res_blocks=1, attention=(4,),
                           dropout=0.0, dtype="float32")  # fmt: skip
  if variant.startswith("mnist16"):  # 0.7M parameters: eight minutes on two CPU cores
    c.args.update(image_shape=(16, 16, 1), n_classes=10, sampler=dict(name="ddim", steps=64))
    c.args.tx.update(lr=1e-3, warmup=100, weight_decay=0.0)
    c.args.ema = dict(profile="warmup", decay=0.999)
    c.args.ode_steps = 50
    c.data.update(source="tfds:mnist", image_size=16, batch_size=64, flip=False, workers=0)
    c.train.update(
      steps=3000, sample_every=1000, eval_every=3000, eval_examples=500, checkpoint_every=500
    )
  elif variant == "smoke":
    c.args.update(
      image_shape=(8, 8, 1), n_classes=10, sampler=dict(name="ddim", steps=8), ode_steps=2
    )
    c.args.net_args.update(channels=8, multipliers=(1, 2), attention=())
    c.args.tx.warmup = 0
    c.args.ema = dict(profile="warmup", decay=0.999)
    c.data.update(source="digits", batch_size=16, flip=False, workers=0)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )

  if variant.endswith("_student"):  # of one stage
    rate, steps = (5e-5, 50_000) if variant == "cifar10_student" else (5e-4, 300)
    c.args.tx.update(lr=rate, warmup=0, weight_decay=0.0, decay="linear", steps=steps)
    c.args.ema = dict(profile="fixed", decay=0.0)  # the network itself
    c.train.update(steps=steps, sample_every=steps, eval_every=0, checkpoint_every=steps // 2)
  return c
