"""SiT: Scalable Interpolant Transformers. Ma et al., 2024. arXiv:2401.08740.

Beside survey R06, whose flow matching this is with the transformer of D14: on latents or pixels, on
any of three paths, trained to predict the velocity, the noise or the score, and sampled by the ODE
or by an SDE whose noise is chosen after training (`samplers.sde.flow_sde`).

As in the authors' code, whose checkpoints `convert.dit` reads, the network is DiT's with the
channels of a variance that nothing uses, and is fed times from 0, noise, to 1, data, as they are.
Their code guides three of the four latent channels; the paper, and we unless `guided_channels` says
otherwise, guide all.
"""

import dataclasses
from typing import Any

import numpy as np

from jaxgen import nn, noise, paths, samplers
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase
from jaxgen.nn import dit
from jaxgen.objectives import score, velocity
from jaxgen.samplers import guidance

PATHS = {"Linear": paths.Linear(), "VP": paths.VP(), "Trigonometric": paths.Trigonometric()}
FIELDS = {
  "velocity": paths.velocity_field,
  "noise": paths.eps_field,
  "score": paths.score_field,
}
# lambda of `score.denoising`, of a noise predictor or a score. arXiv:2401.08740, Sec. 2.3.
WEIGHTS = {
  "none": score.variance,
  "velocity": lambda path, t: (0.5 * paths.sde(path, t)[1]) ** 2,  # the loss of its velocity
  "likelihood": lambda path, t: abs(0.5 * paths.sde(path, t)[1]),
}


@dataclasses.dataclass(frozen=True)
class Inside:
  """`path`, elementwise, without the times nearer than eps to an end where something is infinite.

  both: ends, or that of the data alone. t_noise and t_data are the ends that are left.
  """

  path: Any
  eps: float
  both: bool

  prior_std = 1.0
  t_noise = property(lambda self: self.eps if self.both else self.path.t_noise)
  t_data = property(lambda self: self.eps if self.path.t_noise else 1.0 - self.eps)
  alpha = property(lambda self: self.path.alpha)
  sigma = property(lambda self: self.path.sigma)
  time = property(lambda self: self.path.time)


def build(
  *,
  image_shape=(32, 32, 4),
  n_classes=1000,
  label_dropout=0.1,
  size="XL",
  patch_size=2,
  net_args={"scan": True},
  path="Linear",
  prediction="velocity",
  weight="none",
  train_eps=0.0,
  sample_eps=0.0,
  tx={"lr": 1e-4},
  ema=0.9999,
  accumulate=1,
  sampler={"name": "flow_sde", "steps": 250, "last_size": 0.04},
  guidance_weight=0.0,
  guided_channels=None,
):
  """The Method; the defaults are the paper's ImageNet 256x256 model, SiT-XL/2.

  Args:
    image_shape: (H, W, C) of batches and samples: latents, or pixels in [-1, 1].
    n_classes: 0, or the number of labels; label_dropout: how often training leaves the label out.
    size: of `nn.dit.SIZES`. patch_size: side of a patch. net_args: other fields of `nn.dit.DiT`,
      and those of `size` that are to differ.
    path: "Linear", "VP" or "Trigonometric", the paper's GVP.
    prediction: what the network is trained to say: "velocity", "noise" or "score".
    weight: of the loss of the last two: "none", "velocity" or "likelihood"; "none" of the first.
    train_eps, sample_eps: how far times stay from ends at which something is infinite. VP needs
      them at the data, noise and score on the other paths at both ends; 1e-5 and 1e-3 on VP, 1e-3
      else in the authors' code.
    tx, ema: of `optim.adam` and `optim.averages`. accumulate: micro-batches an update.
    sampler: of `samplers.draw`: a name, steps and options.
    guidance_weight: w; 0 does not guide. The paper's scale is 1 + w.
    guided_channels: how many channels, from the first, are guided; None is all, as in the paper. 3
      is what the authors' code does, and the numbers of the paper were measured with.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  H, W, C = image_shape
  method.check_conditioning(n_classes, label_dropout, guidance_weight)
  if guided_channels is not None:
    method.check_count("guided_channels", guided_channels, 1, C)
  method.check_count("patch_size", patch_size)
  for name, value, known in (
    ("size", size, dit.SIZES),
    ("path", path, PATHS),
    ("prediction", prediction, FIELDS),
    ("weight", weight, WEIGHTS),
  ):
    method.check(name, value, value in known, f"one of {', '.join(known)}")
  is_velocity = prediction == "velocity"
  method.check("weight", weight, weight == "none" or not is_velocity, "none, of a velocity")
  whole, forward = PATHS[path], path != "VP"
  finite = forward and is_velocity  # at both ends
  for name, eps in (("train_eps", train_eps), ("sample_eps", sample_eps)):
    fits = (lambda v: v == 0) if finite else (lambda v: 0.0 < v < 0.5)
    method.check_number(name, eps, fits, "0" if finite else "above 0 and below 0.5")
  inside = lambda eps: whole if finite else Inside(whole, eps, both=forward)
  train_path, sample_path = inside(train_eps), inside(sample_eps)
  samplers.check(sample_path, sampler)
  fields = {**dit.SIZES[size], **net_args}
  nn.module(dit.DiT, "net_args", fields, patch_size=patch_size).check(H, W)
  init, apply_net = nn.image_net(
    "DiT", image_shape, n_classes, 2 * C, patch_size=patch_size, **fields
  )
  sign = 1.0 if forward or not is_velocity else -1.0

  def net_fn(vars, label=None):
    """(x_t, t) -> [B, H, W, C], with the network's clock and direction, from noise to data."""
    clock = lambda t: t if forward else 1.0 - t
    return lambda x_t, t: sign * apply_net(vars, x_t, clock(t), label)[..., :C]

  def loss(vars, batch, keys):
    method.check_batch(batch, image_shape, n_classes)
    k_loss, k_label = noise.split(keys)
    fn = net_fn(vars, guidance.training_label(k_label, batch, label_dropout, n_classes))
    if is_velocity:
      values = velocity.flow_matching(fn, batch["image"], k_loss, path=train_path)
    else:
      k_t, k_eps = noise.split(k_loss)
      t = noise.uniform(k_t, (), *sorted((train_path.t_noise, train_path.t_data)))
      eps_fn = lambda x_t, t: FIELDS[prediction](train_path, fn).predict(x_t, t).eps
      values = score.denoising(
        eps_fn, batch["image"], k_eps, path=train_path, weight=WEIGHTS[weight], t=t
      )
    return values.mean(), Aux()

  def field(vars, cond={}, *, w=guidance_weight):
    """cond: {"label": int32 [n]}, or {}. Only guided channels are mixed."""
    method.check_cond(cond, n_classes, w)
    of = lambda label: FIELDS[prediction](sample_path, net_fn(vars, label))
    conditional = of(cond.get("label"))
    if not (w and cond):
      return conditional
    guided = np.arange(C) < (guided_channels or C)
    weights = w * guided[None, None, None].astype(np.float32)
    return guidance.classifier_free(conditional, of(None), weights)

  def sample(vars, keys, cond={}, *, w=guidance_weight, **options):
    """{"image": [n, *image_shape]}: latents, or pixels about [-1, 1], which are not clipped.

    cond, w: of `field`; a `name` in options replaces `sampler`.
    """
    return {"image": samplers.draw(field(vars, cond, w=w), keys, image_shape, sampler, **options)}

  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx), accumulate=accumulate)},
    ema=optim.averages("net", ema),
    fns={"sample": sample, "field": field},
  )
