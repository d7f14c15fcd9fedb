r"""ADM and its classifier guidance, arXiv:2105.05233.

python -m experiments.train --config=configs/diffusion/adm.py:imagenet64 --workdir=runs/adm
Paper: FID, Table 5: ImageNet 64x64, without guidance (args.classifier_scale=0), 2.07; ImageNet
256x256 10.94, guided 4.59; LSUN Bedroom, 1000 steps, 1.90. Ours: RESULTS.md.

The classifier is a run of the same variant of configs/representation/noisy_classifier.py.
imagenet64, imagenet256 and lsun256 need data.source, a folder of train.npz or train.array_record
with `image` and, for ImageNet, `label`.
"""

import ml_collections

VARIANTS = ("imagenet64", "imagenet256", "lsun256", "mnist16", "smoke")


def get_config(variant="imagenet64"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "diffusion.adm"  # jaxgen/models/diffusion/adm.py
  c.args = dict(  # keywords of its build()
    image_shape=(64, 64, 3),
    n_classes=1000,
    label_dropout=0.0,
    net="ADM",
    net_args=dict(
      channels=192,
      multipliers=(1, 2, 3, 4),
      n_res_blocks=3,
      attention=(32, 16, 8),
      head_channels=64,
      scale_shift=True,
      resblock_updown=True,
      dropout=0.1,
      dtype="float32",
    ),
    schedule="cosine",
    T=1000,
    vlb_weight=1e-3,
    tx=dict(
      lr=3e-4,
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
    sampler=dict(name="ancestral", steps=250, grid="spaced"),
    accumulate=1,
    guidance_weight=0.0,
    bound_terms=1000,
    classifier=dict(
      model="representation.noisy_classifier",
      args=dict(net_args=dict(channels=128, multipliers=(1, 2, 3, 4), n_res_blocks=4)),
    ),
    classifier_scale=1.0,
  )
  c.init_from = dict(classifier="runs/noisy_classifier")
  c.data = dict(
    source="npz:data/imagenet64", batch_size=2048, image_size=64, flip=True, workers=2, timeout=600
  )
  c.train = dict(
    steps=540_000, log_every=100, sample_every=10_000, eval_every=0, eval_examples=1000,
    checkpoint_every=5_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "imagenet64":
    return c
  if variant in ("imagenet256", "lsun256"):
    c.args.update(image_shape=(256, 256, 3), schedule="linear")
    c.args.net_args.update(
      channels=256, multipliers=(1, 1, 2, 2, 4, 4), n_res_blocks=2, dropout=0.0
    )
    c.args.classifier.args.net_args.update(multipliers=(1, 1, 2, 2, 4, 4), n_res_blocks=2)
    c.args.tx.lr = 1e-4
    c.data.update(source="npz:data/imagenet256", image_size=256, batch_size=256)
    c.train.steps = 1_980_000
    if variant == "lsun256":
      c.args.update(n_classes=0, sampler=dict(name="ancestral", steps=1000))
      c.args.classifier = c.init_from = dict()
      c.args.net_args.dropout = 0.1
      c.data.source, c.train.steps = "npz:data/lsun_bedroom", 750_000
    return c

  c.args.net = "UNet"
  c.args.net_args = dict(
    channels=16, multipliers=(1, 2, 4), n_res_blocks=1, attention=(4,), dropout=0.0, dtype="float32"
  )
  c.args.n_classes = 10
  c.args.classifier.args.net_args = dict(
    channels=16, multipliers=(1, 2, 4), n_res_blocks=1, attention=(), head_channels=16
  )
  c.args.ema = dict(profile="warmup", decay=0.999)
  c.args.tx.update(lr=1e-3, warmup=100, clip=1.0)
  c.args.sampler = dict(name="ancestral", steps=50)
  c.args.bound_terms = 50
  c.data.update(flip=False, workers=0)
  if variant == "mnist16":  # 0.7M parameters: legible after ten minutes on two CPU cores
    c.args.image_shape = (16, 16, 1)
    c.data.update(source="tfds:mnist", image_size=16, batch_size=64)
    c.train.update(
      steps=2000, sample_every=500, eval_every=2000, eval_examples=500, checkpoint_every=500
    )
  elif variant == "smoke":
    c.args.update(image_shape=(8, 8, 1), sampler=dict(name="ancestral", steps=4), bound_terms=2)
    c.init_from = dict()
    c.args.net_args.update(channels=8, multipliers=(1, 2), attention=())
    c.args.classifier.args.net_args.update(channels=8, multipliers=(1, 2), head_channels=8)
    c.args.tx.warmup = 0
    c.data.update(source="digits", batch_size=16, image_size=0)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
