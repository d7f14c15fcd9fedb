"""Bad input is refused by errors of ours, before any of our programs compiles."""

import functools
import re
import signal

import jax
import numpy as np
import pytest
import recipes

from experiments import launch
from jaxgen import nn, paths, samplers
from jaxgen.core import loop, method, optim
from jaxgen.data import pipeline, sources
from jaxgen.samplers import ancestral, ddim

NAN, HUGE = float("nan"), 2**40
COMPILED = []  # names of the programs that XLA has compiled, or read from its cache
OURS = {f"jit({name})" for name in ("init_state", "train_step", "sample", "log_prob", "run")}


def _note(event, seconds, fun_name="", **_):
  if event == "/jax/core/compile/backend_compile_duration":
    COMPILED.append(fun_name)


jax.monitoring.register_event_duration_secs_listener(_note)


def trained(changes):
  """Trains a small config with other values: {"train.steps": 0}."""

  def call(folder):
    config = recipes.small("flow_matching/flow_matching.py")
    for key, value in changes.items():
      *tables, name = key.split(".")
      table = config
      for part in tables:
        table = table[part]
      with table.ignore_type():
        table[name] = value
    loop.run(config, folder / "run")

  return call


def fed(**arrays):
  """Trains a small config on an npz of these arrays."""

  def call(folder):
    np.savez(folder / "train.npz", **arrays)
    trained({"data.source": f"npz:{folder}"})(folder)

  return call


def built(model, **args):
  return lambda _: method.build(model, args)


def initialised(model, **args):
  return lambda _: jax.eval_shape(method.build(model, args).init, jax.random.key(0))


def fn(model, name, *inputs, **args):
  """Calls a function or a loss of a model, which must refuse its inputs before it needs vars."""

  def call(_):
    made = method.build(model, args)
    return (made.fns | {k: p.loss for k, p in made.phases.items()})[name](None, *inputs)

  return call


of_ddpm = functools.partial(fn, "diffusion.ddpm", n_classes=3, image_shape=(28, 28, 1))
net = lambda **args: built("diffusion.ddpm", net_args=args)
mlp = lambda **args: built("diffusion.ddpm", net="ResidualMLP", net_args=args)
tx = lambda **numbers: lambda _: optim.adam(**numbers)
ema = lambda numbers: lambda _: optim.averages("net", numbers)
drawn = lambda **options: lambda _: samplers.draw(FIELD, None, (4,), **options)
options = lambda text: lambda _: launch.options(text, DDPM.fns["sample"])


def vae(name, image):
  keys = lambda: jax.random.split(jax.random.key(0), len(image))
  return lambda folder: fn("vae.vae", name, {"image": image}, keys())(folder)


def unet(side=8, **args):
  """Traces a UNet on images of this height and width."""
  init, _ = nn.image_net("UNet", (side, side, 1), 0, **{"multipliers": (1, 2), **args})
  return lambda _: jax.eval_shape(init, jax.random.key(0))


IMAGE = np.zeros((8, 8, 8, 1), np.uint8)
LABEL = np.arange(8)
WIDE, FLOAT = np.full((2, 28, 28, 1), 255.0, np.float32), np.zeros((2, 28, 28, 1), np.float32)
FIELD = paths.eps_field(paths.Discrete(), lambda x, t: x)
DDPM = method.build("diffusion.ddpm", {})

CASES = {
  # Configs.
  "no such steps": (
    trained({"train.steps": -1}),
    "config.train.steps=-1: expected a whole number, 0",
  ),
  "half a step": (
    trained({"train.log_every": 2.5}),
    "config.train.log_every=2.5: expected a whole",
  ),
  "seed below 0": (trained({"train.seed": -1}), "config.train.seed=-1: expected a whole number, 0"),
  "mode": (
    trained({"train.parallel": "pmao"}),
    "config.train.parallel='pmao': expected one of jit",
  ),
  "typo": (trained({"train.stpes": 3}), "config.train.stpes is unknown; did you mean train.steps?"),
  "no rows": (trained({"data.batch_size": 0}), "config.data.batch_size=0: expected a whole number"),
  "rows as bool": (trained({"data.batch_size": True}), "config.data.batch_size=True: expected a"),
  "rows as text": (
    trained({"data.batch_size": "8"}),
    "config.data.batch_size='8': expected a whole",
  ),
  "rows and devices": (
    trained({"data.batch_size": 6}),
    "data.batch_size=6: expected a multiple of",
  ),
  "flip": (trained({"data.flip": 1}), "config.data.flip=1: expected True or False"),
  "workers": (trained({"data.workers": -1}), "config.data.workers=-1: expected a whole number, 0"),
  "no source": (trained({"data.source": ""}), "config.data.source='': expected a name"),
  "kind": (trained({"data.source": "npx:x"}), "source='npx:x' must start with one of digits, npz"),
  "path": (trained({"data.source": "npz:nowhere"}), "nowhere does not exist"),
  "image_size": (trained({"data.image_size": -4}), "config.data.image_size=-4: expected a whole"),
  "timeout": (trained({"data.timeout": 0}), "config.data.timeout=0: expected a whole number, 1 or"),
  "init_from": (trained({"init_from": {"net": "nowhere"}}), "no config.json, so no run, is there"),
  "table": (trained({"data": 3}), "config.data=3: expected a table of keywords"),
  "model": (trained({"model": "gan.wgan_pg"}), "model='gan.wgan_pg' does not exist; did you mean"),
  "keyword": (trained({"args.emma": 1}), "args.emma=1: flow_matching.flow_matching takes no such"),
  "args as number": (trained({"args": 3}), "config.args=3: expected a table of keywords"),
  "tx as number": (trained({"args.tx": 1e-3}), "args.tx=0.001: expected a table of keywords"),
  "keyword of tx": (trained({"args.tx.lrr": 1}), "tx.lrr=1: adam takes no such keyword; did you"),
  "steps of the grid": (
    trained({"args.sampler.steps": 0, "train.sample_every": 4}),
    "steps=0: expected a whole number, 1 or more",
  ),
  # Data.
  "NaN": (fed(image=np.full((8, 8, 8, 1), NAN)), "image of example 0 has NaN or infinity"),
  "floats of 8 bits": (
    fed(image=np.float32(IMAGE) + 255, label=LABEL),
    "image goes from 255.0 to 255.0: expected float in [-1, 1]",
  ),
  "16 bits": (
    fed(image=np.uint16(IMAGE), label=LABEL),
    "image must be uint8 or float, it is uint16",
  ),
  "no channels": (
    fed(image=IMAGE[..., 0], label=LABEL),
    "image needs 3 axes ([T,] H, W, C), it is",
  ),
  "another size": (
    fed(image=IMAGE[:, 1:], label=LABEL),
    "(7, 8, 1): expected image_shape=(8, 8, 1)",
  ),
  "no images": (fed(x=LABEL, label=LABEL), "batch has label, x: expected image"),
  "no labels": (fed(image=IMAGE), "n_classes=10 needs labels, this source has ['image']"),
  "label above": (
    fed(image=IMAGE, label=LABEL + 3),
    "label 10 of example 7 is outside 0..9 (n_classes",
  ),
  "label below": (
    fed(image=IMAGE, label=LABEL - 1),
    "label -1 of example 0 is outside 0..9 (n_classes",
  ),
  "label beyond int32": (
    fed(image=IMAGE, label=LABEL + HUGE),
    f"label {HUGE} of example 0 does not",
  ),
  "label as float": (
    fed(image=IMAGE, label=LABEL / 2),
    "label must be integers, these are float64",
  ),
  "label as vector": (
    fed(image=IMAGE, label=LABEL[:, None]),
    "label must be one number an example",
  ),
  "lengths": (fed(image=IMAGE, label=LABEL[1:]), "image (8, 8, 8, 1) and label (7,) need the same"),
  "no rows of data": (fed(image=IMAGE[:0], label=LABEL[:0]), "has no examples in its train split"),
  "dates": (fed(image=IMAGE, day=LABEL.astype("M8[D]")), "day.npy holds datetime64[D]; numbers or"),
  "tokens beyond int32": (
    lambda _: pipeline.load([{"tokens": np.array([1, HUGE])}], [0]),
    f"tokens [            1 {HUGE}] of example 0 does not fit int32",
  ),
  "examples that differ": (
    lambda _: pipeline.load([{"image": IMAGE[0]}, {"image": IMAGE[0, 1:]}], [0, 1]),
    "examples 0 and 1 differ",
  ),
  "split": (lambda _: sources.open_source("digits", "valid"), "split='valid' must be 'train' or"),
  "resized to 0": (
    lambda _: sources.open_source("digits", "train", image_size=0),
    "image_size=0 must be at least 1",
  ),
  "hosts": (
    lambda _: pipeline.batches(sources.Arrays({"image": IMAGE}), rows=3, steps=1, host=0, hosts=2),
    "rows=3 must be positive and a multiple of hosts=2",
  ),
  # Models.
  "image_shape as number": (
    built("vae.vae", image_shape=28),
    "image_shape=28: expected a tuple or list of whole numbers, 1 or more",
  ),
  "image_shape of rank 2": (
    built("vae.vae", image_shape=(8, 8)),
    "image_shape=(8, 8): expected three",
  ),
  "image_shape of 0": (
    built("diffusion.ddpm", image_shape=(8, 0, 1)),
    "image_shape=(8, 0, 1): expected a tuple or list of whole",
  ),
  "image_shape below 0": (
    built("gan.wgan_gp", image_shape=(-8, 8, 1)),
    "image_shape=(-8, 8, 1): expected a tuple or list of whole",
  ),
  "half a pixel": (
    built("flow.realnvp", image_shape=(8.0, 8, 1)),
    "image_shape=(8.0, 8, 1): expected a tuple or list of whole",
  ),
  "n_classes": (
    built("diffusion.ddpm", n_classes=-1),
    "n_classes=-1: expected a whole number, 0 or",
  ),
  "label_dropout": (
    built("diffusion.ddpm", label_dropout=7),
    "label_dropout=7: expected at least 0",
  ),
  "guidance without classes": (
    built("diffusion.edm", guidance_weight=1.5),
    "guidance_weight=1.5: expected 0: without classes there is nothing to guide to",
  ),
  "guided without classes": (
    lambda _: method.build("diffusion.score_sde", {}).fns["field"](None, w=2.0),
    "w=2.0: expected 0: without classes",
  ),
  "height of ADM": (
    initialised("diffusion.improved_ddpm", image_shape=(30, 32, 3)),
    "x has height and width 30, 32: expected multiples of 8 for 4 multipliers",
  ),
  "guidance": (
    built("diffusion.ddpm", guidance_weight=NAN),
    "guidance_weight=nan: expected a finite",
  ),
  "guidance as text": (
    built("diffusion.ddpm", guidance_weight="2"),
    "guidance_weight='2': expected",
  ),
  "T": (built("diffusion.ddpm", T=0), "T=0: expected a whole number, 1 or more"),
  "beta_1": (built("diffusion.ddpm", beta_1=-1e-4), "beta_1=-0.0001: expected between 0 and 1"),
  "beta_T": (built("diffusion.ddpm", beta_T=NAN), "beta_T=nan: expected between 0 and 1"),
  "bound_terms": (
    built("diffusion.ddpm", bound_terms=0),
    "bound_terms=0: expected a whole number, 1",
  ),
  "sigma_min": (
    built("flow_matching.flow_matching", path_args={"sigma_min": 1.0}),
    "sigma_min=1.0: expected at least",
  ),
  "ode_steps": (built("flow_matching.flow_matching", ode_steps=0), "ode_steps=0: expected a whole"),
  "net": (built("diffusion.ddpm", net="UNnet"), "net='UNnet': expected one of ADM, DiT"),
  "keyword of net": (
    net(chanels=8),
    "net_args.chanels=8: UNet takes no such keyword; did you mean '",
  ),
  "keyword of ours": (net(n_classes=3), "net_args.n_classes=3: UNet takes no such keyword"),
  "name of net": (net(name="x"), "net_args.name='x': UNet takes no such keyword"),
  "channels": (net(channels=0), "net_args.channels=0: expected a whole number, 1 or more"),
  "multipliers": (
    net(multipliers=(1, 0)),
    "net_args.multipliers=(1, 0): expected a tuple or list of whole",
  ),
  "no multipliers": (unet(multipliers=()), "multipliers=(): expected at least one"),
  "n_res_blocks": (net(n_res_blocks=-1), "net_args.n_res_blocks=-1: expected a whole number, 1 or"),
  "attention as number": (
    net(attention=16),
    "net_args.attention=16: expected a tuple or list of whole",
  ),
  "attention": (unet(attention=(5,)), "attention=(5,): expected heights among [8, 4]"),
  "dropout": (net(dropout=1.0), "net_args.dropout=1.0: expected at least 0 and less than 1"),
  "dtype": (
    net(dtype="float17"),
    "net_args.dtype='float17': expected float32, bfloat16 or float16",
  ),
  "odd size": (unet(9), "x has height and width 9, 9: expected multiples of 2 for 2 multipliers"),
  "width": (mlp(width=0), "net_args.width=0: expected a whole number, 1 or more"),
  "depth": (mlp(depth=1.5), "net_args.depth=1.5: expected a whole number, 0 or more"),
  "decoder": (built("vae.vae", decoder="poisson"), "decoder='poisson': expected one of bernoulli"),
  "z_dim": (built("vae.vae", z_dim=0), "z_dim=0: expected a whole number, 1 or more"),
  "width of the VAE": (built("vae.vae", width="500"), "width='500': expected a whole number, 1 or"),
  "scales": (
    built("flow.realnvp", n_scales=7),
    "image_shape=(32, 32, 3): expected height and width",
  ),
  "alpha": (built("flow.realnvp", alpha=0.5), "alpha=0.5: expected more than 0 and less than 0.5"),
  "momentum": (built("flow.realnvp", momentum=1.0), "momentum=1.0: expected at least 0 and less"),
  "l2": (built("flow.realnvp", l2=float("inf")), "l2=inf: expected a finite number, 0 or more"),
  "gp_weight": (
    built("gan.wgan_gp", gp_weight=-1.0),
    "gp_weight=-1.0: expected a finite number, 0",
  ),
  "n_critic": (built("gan.wgan_gp", n_critic=0), "n_critic=0: expected a whole number, 1 or more"),
  "class_weights": (built("gan.wgan_gp", class_weights=1.0), "class_weights=1.0: expected two"),
  "gen_args": (
    built("gan.wgan_gp", gen_args={"channels": (8, 0)}),
    "gen_args.channels=(8, 0): expected a tuple or list of whole",
  ),
  "downs": (built("gan.wgan_gp", critic_args={"downs": 9}), "critic_args.downs=9: expected 0 to 4"),
  "size of the GAN": (
    built("gan.wgan_gp", image_shape=(30, 30, 3)),
    "image_shape=(30, 30, 3): expected",
  ),
  # Optimizers and averages.
  "no lr": (
    tx(),
    "tx.lr is missing: adam takes lr, b1, b2, eps, weight_decay, clip, skip, warmup, decay",
  ),
  "lr NaN": (tx(lr=NAN), "tx.lr=nan: expected a finite number above 0"),
  "lr below 0": (tx(lr=-1e-3), "tx.lr=-0.001: expected a finite number above 0"),
  "lr as text": (tx(lr="1e-3"), "tx.lr='1e-3': expected a finite number above 0"),
  "b1": (tx(lr=1, b1=1.0), "tx.b1=1.0: expected at least 0 and less than 1"),
  "eps": (tx(lr=1, eps=0.0), "tx.eps=0.0: expected a finite number above 0"),
  "clip": (tx(lr=1, clip=-1.0), "tx.clip=-1.0: expected a finite number, 0 or more"),
  "decay of lr": (
    tx(lr=1, decay="exp"),
    "tx.decay='exp': expected linear, cosine or an empty string",
  ),
  "steps of decay": (
    tx(lr=1, decay="linear"),
    "tx.steps=0: expected more updates than tx.warmup=0",
  ),
  "ema": (ema(1.0), "ema.decay=1.0: expected at least 0 and less than 1"),
  "ema as text": (ema("0.9"), "ema.decay='0.9': expected at least 0 and less than 1"),
  "profile": (
    ema({"profile": "warmpu"}),
    "ema.profile='warmpu': expected one of fixed, warmup, power",
  ),
  "keyword of ema": (
    ema({"profile": "warmup", "deccay": 0.9}),
    "ema.deccay=0.9: profile 'warmup' takes no such keyword; did you mean 'decay'?",
  ),
  "sigma_rel": (
    ema({"profile": "power_law", "sigma_rel": 0.3}),
    "ema.sigma_rel=0.3: expected between",
  ),
  # Paths and samplers.
  "no betas": (lambda _: paths.Discrete(()), "betas=(): expected at least one"),
  "beta": (lambda _: paths.Discrete((0.1, 1.5)), "betas[1]=1.5: expected between 0 and 1"),
  "beta_max": (lambda _: paths.VP(beta_max=NAN), "beta_max=nan: expected a finite number above 0"),
  "time": (
    lambda _: FIELD.predict(IMAGE, np.full(8, 5000.0)),
    "t=5000.0: expected 0 to 1000.0, the times of Discrete",
  ),
  "time below 0": (
    lambda _: paths.interpolate(paths.Linear(), IMAGE, IMAGE, -0.5),
    "t=-0.5: expected 0 to 1.0, the times of Linear",
  ),
  "time NaN": (
    lambda _: paths.velocity(paths.VP(), IMAGE, IMAGE, NAN),
    "t=nan: expected 0 to 1.0, the times of VP",
  ),
  "times of a sampler": (
    lambda _: ancestral.ancestral(FIELD, IMAGE, None, np.array([1001.0, 0.0])),
    "t=1001.0: expected 0 to 1000.0, the times of Discrete",
  ),
  "times of DDIM": (
    lambda _: ddim.ddim(FIELD, IMAGE, None, np.array([9.0, -1.0])),
    "t=-1.0: expected 0 to 1000.0, the times of Discrete",
  ),
  "sampler": (
    drawn(name="dimm", steps=9),
    "sampler='dimm': expected one of adaptive, ancestral",
  ),
  "no sampler": (drawn(steps=9), "sampler=None: expected one of adaptive, ancestral"),
  "no sampling steps": (
    drawn(name="ddim"),
    "sampler.steps is missing: ddim takes eta, name, steps",
  ),
  "steps below 0": (drawn(name="ddim", steps=-5), "steps=-5: expected a whole number, 1 to 1000"),
  "too many steps": (
    drawn(name="ddim", steps=2000),
    "steps=2000: expected a whole number, 1 to 1000",
  ),
  "steps as float": (
    drawn(name="ddim", steps=9.0),
    "steps=9.0: expected a whole number, 1 to 1000",
  ),
  "keyword of sampler": (
    drawn(name="ddim", steps=9, eat=0),
    "sampler.eat=0: ddim takes no such keyword",
  ),
  "eta": (
    drawn(name="ddim", steps=9, eta=-1.0),
    "sampler.eta=-1.0: expected a finite number, 0 or",
  ),
  "v": (
    drawn(name="ancestral", steps=9, v=NAN),
    "sampler.v=nan: expected a finite number, 0 or more",
  ),
  "infinite velocity": (
    drawn(name="heun", steps=9),
    "sampler='heun': expected another on Discrete",
  ),
  "sampler of a model": (
    built("diffusion.ddpm", sampler={"name": "ddim", "steps": 50, "eta": "0"}),
    "sampler.eta='0': expected a finite number, 0 or more",
  ),
  # What a notebook gives to a model: its values are known.
  "uint8": (
    vae("vae", np.uint8(FLOAT)),
    "batch has images of uint8: expected",
  ),
  "0 to 255": (
    vae("log_prob", WIDE),
    "image goes from 255.0 to 255.0: expected float in [-1, 1]",
  ),
  "NaN in a batch": (
    vae("encode", FLOAT * NAN),
    "image goes from nan to nan: expected float in [-1, 1]",
  ),
  "shape of a batch": (
    fn("flow.realnvp", "log_prob", {"image": FLOAT}, None),
    "batch has images of shape (28, 28, 1): expected image_shape=(32, 32, 3)",
  ),
  "no labels in a batch": (
    of_ddpm("net", {"image": FLOAT}, None),
    "n_classes=3: expected data with labels",
  ),
  "label of a batch": (
    of_ddpm("net", {"image": FLOAT, "label": np.array([0, 3])}, None),
    "label=3: expected 0 to 2, as n_classes=3",
  ),
  "label of a sample": (
    of_ddpm("sample", None, {"label": np.array([-1, 0])}),
    "label=-1: expected 0 to 2, as n_classes=3",
  ),
  "label of a field": (
    fn("flow_matching.flow_matching", "field", {"label": np.array([HUGE])}, n_classes=3),
    f"label={HUGE}: expected 0 to 2, as n_classes=3",
  ),
  "label as list": (
    of_ddpm("field", {"label": [0, 1]}),
    "label=[0, 1]: expected an int32 array [B]",
  ),
  "typo in cond": (
    of_ddpm("field", {"labels": LABEL}),
    "cond has labels: expected label, or nothing",
  ),
  "label without classes": (
    fn("gan.wgan_gp", "sample", None, {"label": LABEL}),
    "cond has label: expected nothing, as n_classes=0",
  ),
  "label of a VAE": (
    fn("vae.vae", "sample", None, {"label": LABEL}),
    "cond has label: expected nothing",
  ),
  "label of the GAN": (
    fn("gan.wgan_gp", "sample", None, {"label": np.array([10])}, n_classes=10),
    "label=10: expected 0 to 9, as n_classes=10",
  ),
  "w": (lambda _: DDPM.fns["field"](None, w=NAN), "w=nan: expected a finite number"),
  # Launchers.
  "options": (
    options("{steps: 5}"),
    "--options='{steps: 5}': expected JSON: Expecting property name",
  ),
  "options as list": (options("[5]"), "--options=[5]: expected a table of keywords"),
  "deep options": (options("[" * 10**5), "expected JSON: maximum recursion depth exceeded"),
  "option of ours": (options('{"vars": 1}'), "--options.vars=1: this model's sample takes no such"),
  "option of none": (
    lambda _: launch.options('{"steps": 5}', method.build("vae.vae", {}).fns["sample"]),
    "--options.steps=5: this model's sample takes no such keyword",
  ),
  "port": (
    lambda _: launch.hosts(False, "10.0.0.2", 2, 0),
    "--coordinator_address='10.0.0.2': expected HOST:PORT",
  ),
  "host of hosts": (
    lambda _: launch.hosts(False, "h:1", 2, 2),
    "--process_id=2: expected 0 to num_processes - 1 = 1",
  ),
}


@pytest.fixture
def in_time():
  """Fails a test that hangs."""

  def stop(*_):
    raise TimeoutError("took more than 20 seconds")

  before = signal.signal(signal.SIGALRM, stop)
  signal.alarm(20)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused(case, tmp_path, in_time):
  """Acceptance test 22: the error is ours, says what is allowed, and comes before any program."""
  call, words = CASES[case]
  COMPILED.clear()
  with pytest.raises((ValueError, FileNotFoundError), match=re.escape(words)):
    call(tmp_path)
  assert not OURS & set(COMPILED), COMPILED  # JAX's own, for single operations, are no matter


def test_there_are_many_and_a_program_would_be_seen(tmp_path):
  assert len(CASES) >= 40
  COMPILED.clear()
  trained({"train.steps": 1})(tmp_path)
  assert {"jit(init_state)", "jit(train_step)"} <= OURS & set(COMPILED)
