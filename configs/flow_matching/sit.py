r"""SiT, arXiv:2401.08740: beside R06.

python -m experiments.train --config=configs/flow_matching/sit.py:imagenet256 --workdir=runs/sit
Paper: class-conditional ImageNet 256x256: FID 2.06 at guidance 1.50 (guidance_weight=0.5,
guided_channels=3) by the SDE, 8.3 without (guidance_weight=0.0). Ours: RESULTS.md.

imagenet256 trains on latents: a folder of train.npz, or train.array_record, with `image`, float32
[32, 32, 4], Stable Diffusion's means times 0.18215, and `label`.
"""

import ml_collections

VARIANTS = ("imagenet256", "mnist16", "smoke")


def get_config(variant="imagenet256"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "flow_matching.sit"  # jaxgen/models/flow_matching/sit.py
  c.args = dict(  # keywords of its build()
    image_shape=(32, 32, 4),
    n_classes=1000,
    label_dropout=0.1,
    size="XL",
    patch_size=2,
    net_args=dict(width=1152, depth=28, heads=16, mlp_ratio=4.0, dtype="float32", scan=True),
    path="Linear",
    prediction="velocity",
    weight="none",
    train_eps=0.0,
    sample_eps=0.0,
    tx=dict(
      lr=1e-4,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.0,
      clip=0.0,
      warmup=0,
      decay="",
      steps=0,
    ),
    ema=dict(profile="fixed", decay=0.9999),
    sampler=dict(
      name="flow_sde", steps=250, diffusion="sigma", scale=1.0, last="mean", last_size=0.04
    ),
    accumulate=1,
    guidance_weight=0.5,
    guided_channels=3,
  )
  c.init_from = dict()
  c.data = dict(
    source="npz:data/imagenet256_latents", batch_size=256, image_size=0, flip=False, workers=2,
    timeout=600,
  )  # fmt: skip
  c.train = dict(
    steps=7_000_000, log_every=100, sample_every=0, eval_every=0, eval_examples=1000,
    checkpoint_every=5_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "imagenet256":
    return c

  c.args.update(n_classes=10, guidance_weight=0.0, guided_channels=1)
  c.args.net_args.update(width=128, depth=3, heads=4, scan=False)
  c.args.ema = dict(profile="warmup", decay=0.999)
  c.data.workers = 0
  if variant == "mnist16":  # 1M parameters
    c.args.image_shape = (16, 16, 1)
    c.args.tx.update(lr=2e-3, warmup=100, clip=1.0)
    c.args.sampler.steps = 50
    c.data.update(source="tfds:mnist", image_size=16, batch_size=64)
    c.train.update(steps=1500, sample_every=500, checkpoint_every=500)
  elif variant == "smoke":
    c.args.update(image_shape=(8, 8, 1))
    c.args.net_args.update(width=16, depth=2, heads=2)
    c.args.sampler.steps = 4
    c.data.update(source="digits", batch_size=16)
    c.train.update(steps=4, log_every=2, sample_every=4, checkpoint_every=2)
  return c
