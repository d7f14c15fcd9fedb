r"""VDVAE, arXiv:2011.10650.

python -m experiments.train --config=configs/vae/vdvae.py:cifar10 --workdir=runs/vdvae
Paper: bits per dimension of the bound: CIFAR-10 2.87, ImageNet at 64x64 3.52, FFHQ at 256x256 in 5
bits 0.61. Ours: RESULTS.md.
imagenet64 and ffhq256 need data.source, a folder of train.npz and test.npz (or .array_record) with
`image`, uint8; the batches are those of 32 GPUs. cifar16 and mnist16 are for two CPU cores.
"""

import ml_collections

VARIANTS = ("cifar10", "imagenet64", "ffhq256", "cifar16", "mnist16", "smoke")


def get_config(variant="cifar10"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "vae.vdvae"  # jaxgen/models/vae/vdvae.py
  c.args = dict(  # keywords of its build()
    image_shape=(32, 32, 3),
    enc_blocks="32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3",
    dec_blocks="1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21",
    width=384,
    custom_widths="",
    z_dim=16,
    bottleneck=0.25,
    no_bias_above=64,
    head="dmol",
    mixtures=10,
    levels=256,
    pixel_mean=120.63838,
    pixel_std=64.16736,
    tx=dict(
      lr=2e-4, b1=0.9, b2=0.9, eps=1e-8, weight_decay=0.01, clip=200.0, skip=400.0, warmup=100,
      decay="", final=0.0, steps=0,
    ),
    ema=0.9999,
  )  # fmt: skip
  c.init_from = dict()
  c.data = dict(
    source="tfds:cifar10", batch_size=32, image_size=0, flip=False, workers=2, timeout=600
  )
  c.train = dict(
    steps=1_000_000, log_every=1000, sample_every=10_000, eval_every=50_000, eval_examples=10_000,
    checkpoint_every=10_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "imagenet64":
    c.args.update(
      image_shape=(64, 64, 3), width=512, pixel_mean=115.92961967, pixel_std=69.37404, ema=0.999,
      enc_blocks="64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5",
      dec_blocks="1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12",
    )  # fmt: skip
    c.args.tx.update(lr=1.5e-4, clip=220.0, skip=380.0)
    c.data.update(source="npz:data/imagenet64", batch_size=128)
    c.train.steps = 1_600_000
  elif variant == "ffhq256":
    c.args.update(
      image_shape=(256, 256, 3), width=512, pixel_mean=112.8666757481, pixel_std=69.84780273,
      levels=32, ema=0.999,
      enc_blocks="256x3,256d2,128x8,128d2,64x12,64d2,32x17,32d2,16x7,16d2,8x5,8d2,4x5,4d4,1x4",
      dec_blocks="1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x21,64m32,64x13,128m64,128x7,256m128",
    )  # fmt: skip
    c.args.tx.update(lr=1.5e-4, clip=130.0, skip=180.0)
    c.data.update(source="npz:data/ffhq256", batch_size=32)
    c.train.steps = 1_700_000
  elif variant in ("cifar16", "mnist16"):
    c.args.update(
      image_shape=(16, 16, 3), width=48, z_dim=8,
      enc_blocks="16x1,16d2,8x1,8d2,4d4,1x1", dec_blocks="1x1,4m1,4x1,8m4,8x1,16m8,16x1",
      ema=0.99,
    )  # fmt: skip
    c.args.tx.lr = 1e-3
    c.data.update(image_size=16, workers=0)
    c.train.update(
      steps=2000, log_every=100, sample_every=1000, eval_every=1000, eval_examples=1000,
      checkpoint_every=500,
    )  # fmt: skip
    if variant == "mnist16":
      c.args.update(image_shape=(16, 16, 1), head="bernoulli", pixel_mean=33.3, pixel_std=78.6)
      c.data.source = "tfds:mnist"
  elif variant == "smoke":
    c.args.update(
      image_shape=(8, 8, 1), width=8, z_dim=2, mixtures=2, pixel_mean=78.0, pixel_std=96.0,
      enc_blocks="8d8", dec_blocks="1,8m1",
    )  # fmt: skip
    c.data.update(source="digits", batch_size=16, workers=0)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
