"""Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow.

Liu et al., 2022. arXiv:2209.03003.

Survey R02, Eq. 103-105, Box 10.

A network regressed on the directions of straight lines from noise, or from other data, to data;
then on the ends of its own trajectories, which makes those straighter (reflow), and into a few
Euler steps (distillation): experiments/reflow.py. With the times and the distance of
arXiv:2405.20320 one reflow is enough; no real data are inverted to make pairs for it, as that
paper also does. Deviation: classes, with labels dropped for classifier-free guidance
(arXiv:2207.12598).
"""

import functools

import jax
import jax.numpy as jnp

from jaxgen import nn, noise, paths, samplers
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase
from jaxgen.nn import vgg
from jaxgen.objectives import change_of_variables, couplings, velocity
from jaxgen.objectives import times as times_lib
from jaxgen.samplers import guidance

PATH = paths.Linear()


def _squared(vars):
  return velocity.squared


def _pseudo_huber(vars, *, c=velocity.C):
  method.check_positive("c", c)
  return functools.partial(velocity.pseudo_huber, c=c)


def _lpips_huber(vars, *, c=velocity.C, inverse=True):
  def lpips(x, y):
    large = lambda x: jax.image.resize(x, (len(x), 224, 224, x.shape[-1]), "bilinear")
    return vgg.LPIPS().apply({"params": vars.params["lpips"]}, large(x), large(y))

  return velocity.lpips_huber(lpips, c=c, inverse=inverse)


DISTANCES = {"squared": _squared, "pseudo_huber": _pseudo_huber, "lpips_huber": _lpips_huber}


def build(
  *,
  image_shape=(32, 32, 3),
  n_classes=0,
  label_dropout=0.1,
  net="NCSNpp",
  net_args={
    "channels": 128, "multipliers": (1, 2, 2, 2), "n_res_blocks": 4, "attention": (16,),
    "embedding": "positional", "noise_multiplier": 1, "encoder": "standard", "decoder": "standard",
    "resample_filter": (1, 1), "dropout": 0.15, "augment": 0,
  },
  start="noise",
  coupling="independent",
  steps=0,
  times="uniform",
  times_args={},
  distance="squared",
  distance_args={},
  tx={"lr": 2e-4, "warmup": 5000, "clip": 1.0},
  ema=0.999999,
  accumulate=1,
  sampler={"name": "adaptive", "steps": 1, "rtol": 1e-5, "atol": 1e-5},
  guidance_weight=0.0,
  ode_steps=100,
):  # fmt: skip
  """The Method; the defaults are the paper's CIFAR-10 model, 1-rectified flow.

  Args:
    image_shape: (H, W, C) of batches, in [-1, 1], and samples, which are not clipped.
    n_classes: 0, or the number of labels; label_dropout: how often training leaves the label out.
    net, net_args: of `nn.image_net`.
    start: "noise", or "data": images that batches, and samplers in their cond, have as `start`.
    coupling: "independent", or "given": the starts of a batch and its images are the ends of
      trajectories of an earlier flow.
    steps: 0, or k: trains at the times of k Euler steps alone, for a sampler of just these.
    times, times_args: of `times.by_name`, the density of training times.
    distance: "squared", "pseudo_huber" or "lpips_huber", functions of `objectives.velocity`, and
      distance_args, their numbers. LPIPS has its network under "lpips", frozen: `init_from` gives
      it weights of `python -m jaxgen.convert vgg`. Until then they are NaN.
    tx, ema: of `optim.adam` and `optim.averages`. accumulate: micro-batches an update.
    sampler: of `samplers.draw`: a name, steps and options. guidance_weight: w; 0 does not guide.
    ode_steps: of Heun's method in log_prob, which flows that start at data, or were distilled, do
      not have.

  Raises:
    ValueError: a number or a name out of range; in use, a batch or cond that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_conditioning(n_classes, label_dropout, guidance_weight)
  method.check("start", start, start in ("noise", "data"), "noise or data")
  method.check("coupling", coupling, coupling in ("independent", "given"), "independent or given")
  method.check_count("steps", steps, 0)
  method.check_count("ode_steps", ode_steps)
  samplers.check(PATH, sampler)
  trained = not steps or dict(sampler) == {"name": "euler", "steps": steps}
  method.check("sampler", sampler, trained, f"Euler with {steps} steps, which it is trained for")
  density = times_lib.by_name(times, times_args)
  method.check("distance", distance, distance in DISTANCES, f"one of {', '.join(DISTANCES)}")
  method.check_keywords("distance_args", distance_args, DISTANCES[distance], distance, ("vars",))
  DISTANCES[distance](None, **distance_args)  # its own refusals
  inverse = distance == "lpips_huber" and distance_args.get("inverse", True)
  below_1 = not inverse or times in ("uniform", "u_shaped")
  method.check("times", times, below_1, "uniform or u_shaped, which stay below 1, with inverse")
  init_net, apply_net = nn.image_net(net, image_shape, n_classes, **net_args)
  starts = {"start": image_shape} if start == "data" else {}

  def init(key):
    vars = init_net(key)
    if distance != "lpips_huber":
      return vars
    x = jnp.zeros((1, 16, 16, 3))
    unknown = jax.tree.map(lambda p: jnp.full_like(p, jnp.nan), vgg.LPIPS().init(key, x, x))
    return vars._replace(params={**vars.params, "lpips": unknown["params"]})

  def velocity_fn(vars, label=None, draw=None):
    # The network's time embedding is made for 0 to 1000.
    return lambda x_t, t: apply_net(vars, x_t, 1000.0 * t, label, draw)

  def ends(batch, keys):
    """(x0, x1) of the coupling, both [B, *image_shape]."""
    if not starts and coupling == "independent":
      return noise.normal(keys, image_shape), batch["image"]
    method.check_given(batch, {"start": image_shape})
    pairs = batch["start"], batch["image"]
    return pairs if coupling == "given" else couplings.shuffled(*pairs, keys)

  def loss(vars, batch, keys):
    method.check_batch(batch, image_shape, n_classes)
    k_ends, k_t, k_label, k_dropout = noise.split(keys, 4)
    x0, x1 = ends(batch, k_ends)
    t = density(noise.uniform(k_t))
    t = velocity.step_times(t, steps) if steps else t
    label = guidance.training_label(k_label, batch, label_dropout, n_classes)
    fn = velocity_fn(vars, label, noise.stream(k_dropout))
    apart = DISTANCES[distance](vars, **distance_args)
    return velocity.rectified_flow(fn, x0, x1, None, t=t, distance=apart).mean(), Aux()

  def field(vars, cond={}, *, w=guidance_weight):
    """cond: {"label": int32 [n]}, or {}, and a `start`, which it does not need.

    Of data to data, and of given pairs, only its velocities mean anything: the score and samplers
    with noise are those of independent noise.
    """
    of = lambda label: paths.velocity_field(PATH, velocity_fn(vars, label))
    return guidance.of_labels(of, method.without(cond, starts), n_classes, w)

  def sample(vars, keys, cond={}, *, w=guidance_weight, **options):
    """{"image": [n, *image_shape]}. w: of `field`; a `name` in options replaces `sampler`.

    cond: of `field`, and with data as starts also {"start": [n, *image_shape]}.
    """
    method.check_given(cond, starts)
    at = cond["start"] if starts else None
    x = samplers.draw(field(vars, cond, w=w), keys, image_shape, sampler, start=at, **options)
    return {"image": x}

  def log_prob(vars, batch, keys):
    """A lower bound on log P of 8-bit images, in nats [B].

    Of the null class, or given the labels where label_dropout is 0.
    """
    cond = guidance.likelihood_cond(batch, image_shape, n_classes, label_dropout)
    fn = velocity_fn(vars, cond.get("label"))
    return change_of_variables.flow_log_prob(fn, batch["image"], keys, PATH, ode_steps)

  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx), accumulate=accumulate)},
    ema=optim.averages("net", ema),
    fns={"sample": sample, "field": field, **({} if starts or steps else {"log_prob": log_prob})},
    serves=("net",),
    given=tuple(starts),
  )
