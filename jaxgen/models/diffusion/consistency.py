"""Consistency Models. Song et al., 2023. arXiv:2303.01469.

Survey D08, Sec. 6.1, Table 7.

A network that maps any point of a trajectory of the probability-flow ODE to its start: distilled
from a trained diffusion model, or trained alone. Any model with a `field` is a denoiser, so it may
be the teacher and give the student its network; with an EDM network f is the paper's, to the
letter. A field that clips x, as those of DDPM, Improved DDPM and ADM do, stops gradients where it
does. Deviations: Adam in place of RAdam; l2 in place of LPIPS; DDPM++ in place of NCSN++.
"""

import functools

import jax
import jax.numpy as jnp

from jaxgen import noise, paths
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Ema, Method, Phase, Vars
from jaxgen.objectives import distillation
from jaxgen.samplers import consistency, guidance

METRICS = {"l1": distillation.l1, "l2": distillation.l2}


def _fixed(*, scales=18, mu=0.0):
  """(N(k), mu(k)), the same at every step: what the paper distills with."""
  method.check_count("schedule.scales", scales, 2)
  method.check_fraction("schedule.mu", mu)
  return lambda k: scales, lambda k: mu


def _progressive(*, s_0=2, s_1=150, mu_0=0.9, steps=800_000):
  """(N(k), mu(k)) of arXiv:2303.01469, App. C: what the paper trains alone with."""
  method.check_count("schedule.s_0", s_0, 2)
  method.check_count("schedule.s_1", s_1, s_0)
  method.check_number("schedule.mu_0", mu_0, lambda v: 0.0 < v < 1.0, "between 0 and 1")
  method.check_count("schedule.steps", steps)
  scales = lambda k: distillation.progressive_scales(k, steps=steps, s_0=s_0, s_1=s_1)
  return scales, lambda k: distillation.target_decay(scales(k), mu_0=mu_0, s_0=s_0)


SCHEDULES = {"fixed": _fixed, "progressive": _progressive}


def build(
  *,
  image_shape=(32, 32, 3),
  n_classes=0,
  denoiser={"model": "diffusion.edm", "args": {}},
  distill=True,
  sigma_min=0.002,
  sigma_max=80.0,
  rho=7.0,
  sigma_data=0.5,
  schedule={"profile": "fixed", "scales": 18, "mu": 0.0},
  metric="l2",
  tx={"lr": 4e-4},
  ema=0.9999,
  accumulate=1,
  levels=(),
  guidance_weight=0.0,
):
  """The Method; the defaults distill the paper's CIFAR-10 model, but for the deviations above.

  The networks of the denoiser are kept under "net", those of its target under "net_ema" and those
  of the teacher, a whole run that `init_from` names, under "teacher".

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1]. n_classes: 0, or how many labels.
    denoiser: {"model", "args"} of a model with a `field`; image_shape and n_classes are these.
    distill: from the teacher (CD, Alg. 2), or without one (CT, Alg. 3).
    sigma_min, sigma_max, rho: of the noise levels; sigma_data: of the scalings of f.
    schedule: {"profile": "fixed" or "progressive", **its numbers}: the number of levels N(k), and
      mu(k), the decay of the target network.
    metric: "l2" or "l1".
    tx: of `optim.adam`. ema: of `optim.averages`, of the network that samples; 0: the target's.
    accumulate: micro-batches an update.
    levels: noise levels, falling from sigma_max, at which samples are noised and mapped again.
    guidance_weight: w of the teacher.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_conditioning(n_classes, 0.0, guidance_weight)
  method.check("distill", distill, isinstance(distill, bool), "True or False")
  method.check_positive("rho", rho)
  method.check_positive("sigma_data", sigma_data)
  method.check("metric", metric, metric in METRICS, f"one of {', '.join(METRICS)}")
  method.check("denoiser", denoiser, set(denoiser) == {"model", "args"}, "a model and its args")
  path = paths.EDM(sigma_min, sigma_max)
  _check_levels(levels, path)
  scales, mu = _schedule(schedule)
  shared = {"image_shape": image_shape, "n_classes": n_classes}
  inner = method.build(denoiser["model"], {**denoiser["args"], **shared})
  method.check("denoiser.model", denoiser["model"], "field" in inner.fns, "one with a field")

  def init(key):
    vars = inner.init(key)
    names = ("net", "teacher") if distill else ("net",)
    copies = {name: jax.tree.map(jnp.copy, vars) for name in names}
    extra = {name: copy.extra for name, copy in copies.items()} if vars.extra else {}
    return Vars({name: copy.params for name, copy in copies.items()}, extra)

  def denoising(vars, cond, w):
    """The Field of `inner`, on `path`."""
    given = inner.fns["field"](vars, cond, w=w)
    return given if given.path == path else paths.moved(given, path)

  def consistency_fn(vars, cond, w=0.0):
    predict = denoising(vars, cond, w).predict
    return distillation.consistency_fn(
      lambda x_t, sigma: predict(x_t, sigma).x, sigma_data=sigma_data, sigma_min=sigma_min
    )

  def loss(vars, batch, keys, scales):
    method.check_batch(batch, image_shape, n_classes)
    cond = {"label": batch["label"]} if n_classes else {}
    f = consistency_fn(method.inner(vars, "net"), cond)
    target = Vars(vars.params["net_ema"], vars.extra.get("net", {}))
    f_target = consistency_fn(target, cond)
    objective = distillation.consistency_training
    if distill:
      teacher = denoising(method.inner(vars, "teacher"), cond, guidance_weight)
      objective = functools.partial(distillation.consistency_distillation, teacher=teacher)
    options = {"scales": scales, "path": path, "rho": rho, "metric": METRICS[metric]}
    return objective(f, f_target, x=batch["image"], keys=keys, **options).mean(), Aux()

  def field(vars, cond={}, *, w=0.0):
    """Its x is f(x_t, t). cond: {"label": int32 [n]}, or {}. w: of the denoiser's field."""
    method.check_cond(cond, n_classes, w)
    return paths.x_field(path, consistency_fn(method.inner(vars, "net"), cond, w))

  def sample(vars, keys, cond={}, *, w=0.0, levels=levels):
    """{"image": [n, *image_shape]}, clipped to [-1, 1]. cond, w: of `field`. levels: of build."""
    _check_levels(levels, path)
    k_x, k_z = noise.split(keys)
    x = sigma_max * noise.normal(k_x, image_shape)
    ts = jnp.asarray((sigma_max, *levels, sigma_min), jnp.float32)
    clipped = guidance.clipped(field(vars, cond, w=w))
    return {"image": consistency.consistency(clipped, x, k_z, ts)}

  phase = Phase(loss, ("net",), optim.adam(**tx), accumulate=accumulate, hparams={"scales": scales})
  means = {"net_ema": Ema("net", mu)}
  if ema:  # of two averages of one network the last is what samples
    means["sample_ema"] = optim.averages("net", ema)["net_ema"]
  fns = {"sample": sample, "field": field}
  return Method(init, {"net": phase}, means, fns, serves=("net",))


def _schedule(given):
  numbers = dict(given)
  profile = numbers.pop("profile", None)
  method.check("schedule.profile", profile, profile in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
  method.check_keywords("schedule", numbers, SCHEDULES[profile], f"profile {profile!r}")
  return SCHEDULES[profile](**numbers)


def _check_levels(levels, path):
  method.check("levels", levels, isinstance(levels, (tuple, list)), "a tuple or list of numbers")
  last = path.sigma_max
  for i, level in enumerate(levels):
    falls = lambda v, last=last: path.sigma_min < v < last
    method.check_number(f"levels[{i}]", level, falls, f"between {path.sigma_min} and {last}")
    last = level
