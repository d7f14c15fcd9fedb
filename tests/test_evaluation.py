"""Evaluation is exact: one number on any devices, any hosts and in batches of any size."""

import json
import signal
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import processes
import pytest
import recipes

from jaxgen import paths, samplers
from jaxgen.convert import weights
from jaxgen.core import inference, method, parallel, step
from jaxgen.data import pipeline, sources
from jaxgen.metrics import evaluation, extractors, frechet
from jaxgen.nn import clip, vgg

KEY = jax.random.key(3)
COUNTS, BATCH_SIZES = (1, 13, 37), (7, 16, 100)
# The sum over examples says which of them were seen: each exactly once, or it is another number.
POWERS = method.Method(
  init=lambda key: method.Vars({}),
  fns={"log_prob": lambda vars, batch, keys: 2.0 ** batch["image"][:, 0, 0, 0]},
)


def numbered(n):
  """n examples, float images [1, 1, 1] that are their number."""
  return sources.Arrays({"image": np.arange(n, dtype=np.float32)[:, None, None, None]})


def models():
  """(name, method, vars, source) of a model of each kind that has a log_prob, parameters random."""
  kinds = "diffusion/ddpm", "flow_matching/flow_matching", "flow/realnvp", "vae/vae"
  for kind in kinds:
    config, rng = recipes.small(f"{kind}.py"), np.random.default_rng(0)
    made = method.build(config.model, config.args)
    params, extra = jax.eval_shape(lambda made=made: step.init_state(made, KEY).vars)
    draw = lambda x, rng=rng: rng.normal(0.0, 0.1, x.shape).astype(x.dtype)
    ones = lambda x: np.ones(x.shape, x.dtype)
    vars = method.Vars(jax.tree.map(draw, params), jax.tree.map(ones, extra))
    yield kind.split("/")[1], made, vars, sources.open_source(config.data.source, "test")


def numbers(batch_size):
  """name/N -> what every model offers on its first N examples."""
  found = {}
  for name, made, vars, source in models():
    vars, evaluate = parallel.replicate(vars), inference.evaluator(made, batch_size)
    for n in COUNTS:
      found[f"{name}/{n}"] = evaluate(vars, source, KEY, limit=n)
    if name == "vae":  # parameters that are split over the devices
      split = parallel.place(vars, parallel.compile_init(made, "fsdp")(jax.random.key(0)).vars)
      assert evaluate(split, source, KEY, limit=n) == found[f"{name}/{n}"]
  return found


OUTPUTS = ("pool", "logits", "spatial")


def projection(dim=6, pixels=64):
  """An extractor of 8x8 images with random weights: compiles at once."""
  rng = np.random.default_rng(0)
  variables = {k: rng.normal(0, 0.1, (pixels, dim)).astype(np.float32) for k in OUTPUTS}
  apply = lambda v, x: {k: jnp.tanh(x.reshape(len(x), -1) / 50 @ w) for k, w in v.items()}
  return extractors.Extractor(
    "Test", True, "0" * 64, "image", False, (*variables,), variables, apply
  )


def measures(batch_size):
  """Label -> value of every measure of features, of samples and of images; a fresh cache."""
  config = recipes.small("flow_matching/flow_matching.py")
  made = method.build(config.model, config.args)
  vars = jax.jit(lambda key: step.init_state(made, key))(jax.random.key(0)).vars
  vars = parallel.replicate(vars)
  source, others = (sources.open_source("digits", split) for split in ("train", "test"))
  names = [*evaluation.OF_FEATURES]
  found = {}
  with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
    patch.setenv("JAXGEN_CACHE", folder)
    for again in (False, True):  # the second time from the cache
      data = evaluation.Data(source, "digits", "train", 150)
      judged = evaluation.draw_samples(
        made, vars, KEY, inference.Conditions(37, 10), name="euler", steps=2
      )
      some = evaluation.compare(names, [projection()], judged, data, batch_size)
      assert again is False or some == found
      found |= some
  told = (made, vars, KEY, inference.Conditions(37, 10), batch_size)
  found |= evaluation.of_flow(["straightness"], *told)
  judged = evaluation.read_images(others, 77)
  found |= {
    f"{k} of images": v
    for k, v in evaluation.compare(
      ["inception_score"], [projection()], judged, data, batch_size
    ).items()
  }
  larger = [sources.open_source("digits", split, image_size=16) for split in ("train", "test")]
  pair = [evaluation.Data(x, "digits", "", 41) for x in larger]
  found |= evaluation.of_pairs(["psnr", "ssim"], [], *pair, batch_size)
  return {label: measured["value"] for label, measured in found.items()}


def check_every_example_is_seen_once():
  """On all of this process's devices and on all hosts; a hang ends the process."""
  signal.alarm(15)
  for batch_size in BATCH_SIZES:
    evaluate = inference.evaluator(POWERS, batch_size)
    for n in COUNTS:
      for source, limit in ((numbered(n), None), (numbered(n), 1000), (numbered(50), n)):
        result = evaluate(method.Vars({}), source, KEY, limit=limit)
        nats = (2**n - 1) / n
        assert result == {"nats": nats, "bits_per_dim": -nats / np.log(2.0), "n": n}, (n, limit)
    with pytest.raises(ValueError, match="the source is empty"):
      evaluate(method.Vars({}), numbered(0), KEY)
    with pytest.raises(ValueError, match="limit=0 must be at least 1"):
      evaluate(method.Vars({}), numbered(3), KEY, limit=0)
  signal.alarm(0)


def in_children(hosts, devices, call, check=""):
  """What `call` returns in each of the hosts, after `check`."""
  body = f"import json, test_evaluation as t\n{check}\nprint('numbers', json.dumps({call}))"
  texts = processes.run(body, hosts, devices)
  return [json.loads(t.split("numbers ")[-1].splitlines()[0]) for t in texts]


def test_models_have_one_number_on_all_devices_and_hosts():
  """Acceptance test 19: one device = four devices = two hosts with two, in batches of any size."""
  one = in_children(1, 1, "t.numbers(100)")[0]
  assert {name: result["n"] for name, result in one.items()} == {
    name: int(name.split("/")[1]) for name in one
  }
  assert numbers(7) == one
  two_hosts = in_children(2, 2, "t.numbers(16)", "t.check_every_example_is_seen_once()")
  assert two_hosts == [one, one]


def test_measures_have_one_value_on_all_devices_and_hosts():
  """One device = four devices = two hosts with one each, in batches of any size."""
  one = in_children(1, 1, "t.measures(100)")[0]
  assert measures(7) == one
  assert in_children(2, 1, "t.measures(16)") == [one, one]


def test_every_example_is_seen_once():
  """Acceptance test 19: fewer examples than rows, none, a limit beyond the end; four devices."""
  check_every_example_is_seen_once()


@pytest.mark.parametrize("elements", [1, 10, 2**24])
def test_hosts_are_summed_a_part_at_a_time(elements, monkeypatch):
  monkeypatch.setattr(parallel, "_GATHERED", elements)
  x = np.arange(42, dtype=np.float32).reshape(7, 3, 2)
  np.testing.assert_array_equal(parallel.sum_hosts(x), x)


def test_an_empty_split_is_named(tmp_path):
  """Acceptance test 19: N = 0."""
  np.savez(tmp_path / "test.npz", image=np.zeros((0, 2, 2, 1), np.uint8))
  with pytest.raises(ValueError, match=rf"npz:{tmp_path}' has no examples in its test split"):
    sources.open_source(f"npz:{tmp_path}", "test")


def test_what_is_not_finite_is_named():
  """The first such example, also behind the first block; padding may be anything."""
  bad = lambda vars, batch, keys: 1.0 / (batch["image"][:, 0, 0, 0] - 35.0)
  evaluate = inference.evaluator(POWERS._replace(fns={"log_prob": bad}), 100)
  with pytest.raises(FloatingPointError, match="log_prob of example 35 is not finite"):
    evaluate(method.Vars({}), numbered(40), KEY)
  assert evaluate(method.Vars({}), numbered(40), KEY, limit=35)["n"] == 35


def stored(folder, kind, net, *inputs, **args):
  """The extractor of a file with random weights."""
  shapes, rng = jax.eval_shape(net.init, jax.random.key(0), *inputs), np.random.default_rng(0)
  draw = lambda x: rng.normal(0.0, 1.0 / np.sqrt(x.size / x.shape[-1] if x.shape else 1.0), x.shape)
  variables = jax.tree.map(lambda x: draw(x).astype(np.float32), shapes)
  note = {"network": kind, "args": json.dumps(args), "sources": "{}"}
  weights.write(folder / f"{kind}.safetensors", variables, note)
  return extractors.load(f"{kind}:{folder / kind}.safetensors"), variables


def test_pairs_of_images(tmp_path):
  """The means over pairs; grey images are given to VGG as RGB."""
  rng, x = np.random.default_rng(0), np.zeros((1, 16, 16, 3), np.float32)
  lpips, variables = stored(tmp_path, "vgg", vgg.LPIPS(), x, x)
  a, b = rng.integers(0, 256, (2, 5, 16, 16, 1), np.uint8)
  pair = [evaluation.Data(sources.Arrays({"image": y}), "noise", "train", 5) for y in (a, b)]
  names = ["lpips", "psnr", "ssim", "inception_score"]
  found = evaluation.of_pairs(names, [projection(), lpips], *pair, 100)
  both = [projection(dim=6, pixels=256), lpips]  # what LPIPS takes is no matter of the other's
  judged = evaluation.read_images(pair[0].source)
  some = evaluation.compare(["precision_recall"], both, judged, pair[1], 100)
  assert set(some) == {"precision-Test", "recall-Test"}
  assert {k: v["n"] for k, v in found.items()} == {"PSNR, dB": 5, "SSIM": 5, "LPIPS": 5}
  mse = np.mean((a.astype(float) - b) ** 2, axis=(1, 2, 3))
  np.testing.assert_allclose(
    found["PSNR, dB"]["value"], np.mean(10 * np.log10(255**2 / mse)), rtol=1e-5
  )
  signed = [np.repeat(pipeline.to_float(y), 3, -1) for y in (a, b)]
  apart = jax.jit(vgg.LPIPS().apply)(variables, *signed)
  np.testing.assert_allclose(found["LPIPS"]["value"], np.mean(apart), rtol=1e-5)
  assert found["LPIPS"]["extractor"]["name"] == "VGG16" and found["SSIM"]["extractor"] is None
  with pytest.raises(ValueError, match="5 and 4 images: expected pairs, as many of both"):
    evaluation.of_pairs(["ssim"], [], pair[0], pair[1]._replace(n=4), 100)


def test_captions_of_images(tmp_path):
  """The mean over images and their captions, after the prefix of the paper."""
  args = dict(embed_dim=8, image_resolution=16, vision_layers=1, vision_width=64)
  args |= dict(vision_patch_size=8, context_length=6, vocab_size=20, transformer_width=64)
  args |= dict(transformer_heads=1, transformer_layers=1)
  net = clip.CLIP(**args)
  x, tokens = np.zeros((1, 16, 16, 3), np.float32), np.zeros((1, 6), np.int32)
  network, variables = stored(tmp_path, "clip", net, x, tokens, **args)
  rng, told = np.random.default_rng(1), []
  image = rng.integers(0, 256, (3, 20, 24, 3), np.uint8)
  tokens = rng.integers(0, 20, (3, 6), np.int32)

  def tokenize(texts, truncate):
    told.extend(texts)
    return tokens[[int(texts[0][-1])]]

  source = sources.Arrays({"image": image, "caption": np.array(["dog 0", "dog 1", "dog 2"])})
  data = evaluation.Data(source, "dogs", "train", 3)
  found = evaluation.of_captions(network, tokenize, data, 100)["CLIP score"]
  assert "A photo depicts dog 1" in told and found["n"] == 3
  given = clip.preprocess(image, 16), tokens
  logits = jax.jit(net.apply)(variables, *given)[0]
  cos = np.diag(logits) / np.exp(variables["params"]["logit_scale"])
  np.testing.assert_allclose(found["value"], 2.5 * np.maximum(cos, 0).mean(), rtol=1e-4)
  with pytest.raises(ValueError, match="example 0 has image: expected a caption"):
    evaluation.Captioned(sources.Arrays({"image": image}), tokenize)[0]


def test_videos_against_published_moments(tmp_path):
  """The distance of `frechet` itself; what needs features is refused."""
  rng = np.random.default_rng(0)
  video = rng.integers(0, 256, (20, 4, 2, 2, 3), np.uint8)
  apply = lambda v, x: {"pool": x.mean((1, 2, 3))}
  network = projection()._replace(media="video", outputs=("pool",), apply=apply)
  moments = frechet.moments(rng.normal(100.0, 9.0, (9, 3)))._replace(n=None)
  data = evaluation.Data(moments, "stats.npz", "", None)
  judged = evaluation.read_images(sources.Arrays({"video": video}))
  found = evaluation.compare(["frechet"], [network], judged, data, 100)["FD-Test"]
  features = video.astype(float).mean((1, 2, 3))
  expected = frechet.frechet_distance(frechet.moments(features), moments)
  np.testing.assert_allclose(found["value"], expected, rtol=1e-5)
  assert found["reference"]["data"] == "stats.npz" and found["reference"]["n"] is None
  with pytest.raises(ValueError, match="expected frechet alone against moments"):
    evaluation.compare(["kernel"], [network], judged, data, 100)
  with pytest.raises(ValueError, match="a has n=3 samples in D=3 dimensions"):
    few = evaluation.read_images(sources.Arrays({"video": video[:3]}))
    evaluation.compare(["frechet"], [network], few, data, 100)


def test_the_inception_score_does_not_depend_on_the_order_of_files():
  """Sorted by class, each of ten parts would have one class, and a score of 1."""
  image = np.repeat(np.arange(10, dtype=np.uint8), 30)[:, None, None, None] * 20
  one_hot = lambda v, x: {"logits": 50.0 * jax.nn.one_hot((x[:, 0, 0, 0] / 20).astype(int), 10)}
  network = projection()._replace(apply=one_hot, outputs=("logits",))
  judged = evaluation.read_images(sources.Arrays({"image": image}))
  score = evaluation.compare(["inception_score"], [network], judged, None, 100)["IS-Test"]["value"]
  assert 8.5 < score <= 10.0


def test_a_paper_s_name_wants_its_weights():
  network = projection()._replace(label="Inception", outputs=("logits",))
  judged = evaluation.read_images(sources.open_source("digits", "test"))
  for published, name in ((True, "Inception score"), (False, "IS-Inception")):
    some = [network._replace(published=published)]
    assert set(evaluation.compare(["inception_score"], some, judged, None, 100)) == {name}


def test_what_a_method_says_of_data():
  """The importance-sampled likelihood is above the bound; the accuracy is that of the labels."""
  config = recipes.smoke("vae/vae.py")
  made = method.build(config.model, config.args)
  vars = jax.jit(lambda key: step.init_state(made, key))(jax.random.key(0)).vars
  source = sources.open_source("digits", "test")
  data = evaluation.Data(source, "digits", "test", 20)
  found = evaluation.of_method(
    ["nats", "importance_nll", "bits_per_dim"], made, parallel.replicate(vars), data, KEY, 0, 100
  )
  assert -found["NLL, nats"]["value"] > found["nats"]["value"]
  bits = -found["nats"]["value"] / 64 / np.log(2.0)
  np.testing.assert_allclose(found["bits/dim"]["value"], bits, rtol=1e-12)
  assert found["nats"]["how"] == "the first 20 images of the test set"
  third = lambda vars, batch: {"logits": jnp.tile(jnp.eye(10)[3], (len(batch["image"]), 1))}
  guess = method.Method(init=made.init, fns={"detect": third})
  accuracy = evaluation.of_method(["accuracy"], guess, method.Vars({}), data, KEY, 10, 100)
  assert accuracy["accuracy"]["value"] == np.mean(source.labels[:20] == 3)
  with pytest.raises(ValueError, match="measures='nats': expected others: this model has no log_p"):
    evaluation.of_method(["nats"], guess, method.Vars({}), data, KEY, 10, 100)


# Every trajectory is a straight line along `start`, or a third of a turn about the origin.
DRIFTS = {
  "line": lambda start: lambda x, t: start,
  "turn": lambda start: lambda x, t: (2.0 * np.pi / 3.0) * jnp.stack([-x[..., 1], x[..., 0]], -1),
}


def flow(drift):
  """A Method whose velocity is known; points in the plane, carried from `start`."""
  of = lambda cond: paths.velocity_field(paths.Linear(), DRIFTS[drift](cond["start"]))
  draw = lambda vars, keys, cond: samplers.draw(
    of(cond), keys, (1, 1, 2), name="heun", steps=100, start=cond["start"]
  )
  fns = {"field": lambda vars, cond: of(cond), "sample": lambda *a: {"image": draw(*a)}}
  return method.Method(init=POWERS.init, fns=fns, given=("start",))


def ring(n):
  """Points at the n-th roots of one, as the start and the data."""
  angle = 2.0 * np.pi * np.arange(n) / n
  x = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)[:, None, None]
  return sources.Arrays({"image": x, "start": x})


@pytest.mark.evidence("R02", "M")
def test_flows_of_known_straightness():
  """A third of a turn has the arc 2 pi / 3 and the chord 3 ** 0.5, and the ring onto itself."""
  conditions, names = (
    inference.Conditions(9, given=("start",), source=ring(9)),
    (*evaluation.OF_FLOWS,),
  )
  chord, found = {"line": 1.0, "turn": 3.0}, {}
  for drift, squared in chord.items():
    made = flow(drift)
    found[drift] = evaluation.of_flow(names, made, method.Vars({}), KEY, conditions, 100)
    value = {label: measured["value"] for label, measured in found[drift].items()}
    np.testing.assert_allclose(value["transport cost"], squared / 2, rtol=1e-4)
    arc = (2.0 * np.pi / 3.0) ** 2 if drift == "turn" else 1.0
    np.testing.assert_allclose(value["straightness"], (arc - squared) / 2, rtol=1e-3, atol=1e-6)
    data = evaluation.Data(ring(9), "ring", "test", 9)
    judged = evaluation.draw_samples(made, method.Vars({}), KEY, conditions)
    w2 = evaluation.of_points(judged, data, 100)["W2"]
    np.testing.assert_allclose(w2["value"], 1.0 if drift == "line" else 0.0, atol=1e-3)
    assert (w2["reference"]["data"], w2["reference"]["n"], w2["n"]) == ("ring test", 9, 9)
  assert found["line"]["NFE"]["value"] < found["turn"]["NFE"]["value"]
  assert "rtol = atol = 1e-5" in found["line"]["NFE"]["how"] and found["line"]["NFE"]["n"] == 9
  labels = {"W2", *(label for measured in found.values() for label in measured)}
  assert labels <= evaluation.labels()


@pytest.mark.parametrize("path", ["flow_matching/flow_matching.py", "diffusion/ddpm.py"])
def test_flows_of_models(path):
  """A chain has an NFE too; of classes in turn, guided where that is asked for."""
  config = recipes.small(path)
  made = method.build(config.model, config.args)
  vars = parallel.replicate(jax.jit(lambda key: step.init_state(made, key))(KEY).vars)
  conditions = inference.conditions(config, made, 3)
  found = evaluation.of_flow(["nfe"], made, vars, KEY, conditions, 100, w=1.0, steps=3)
  assert set(found) == {"NFE"} and found["NFE"]["value"] >= 14 and ", w=1.0;" in found["NFE"]["how"]
  assert "steps" not in found["NFE"]["how"]  # of samples alone


def test_flows_that_do_not_fit_are_refused():
  none = POWERS._replace(fns={})
  with pytest.raises(ValueError, match="measures='nfe': expected others: this model has no field"):
    evaluation.of_flow(["nfe"], none, method.Vars({}), KEY, inference.Conditions(3), 100)
  judged = evaluation.read_images(ring(9))
  for source, n, words in [
    (ring(8), 9, "the number of examples=8: expected 9 or more, as there are samples"),
    (sources.Arrays({"image": np.zeros((9, 9, 9, 1))}), 9, "numbers an image=81: expected 64 at"),
    (numbered(5000), 4001, "samples=4001: expected a whole number, 1 to 4000"),
  ]:
    with pytest.raises(ValueError, match=words):
      evaluation.of_points(judged._replace(n=n), evaluation.Data(source, "x", "test", n), 100)


@pytest.mark.parametrize(
  "names, words, given",
  [
    (["frechet"], "'frechet': expected a --source to compare --images with", {}),
    (["psnr"], "'psnr': expected a --source to compare --images with", {"moments": True}),
    (["kernel"], "'kernel': expected frechet alone against moments", {"moments": True}),
    (["clip_score"], "'clip_score': expected --vocabulary too", {}),
    (["psnr"], "'psnr': expected others of a run", {"run": True}),
    (["nats"], "'nats': expected others without a run", {"real": True}),
    (["nfe"], "'nfe': expected others without a run", {"real": True}),
    (["wasserstein"], "'wasserstein': expected others without a run", {"real": True}),
    (["lpips"], r"extractors=\['Test'\]: expected one with distance", {"real": True}),
    (["fid"], "'fid': expected some of bits_per_dim", {}),
  ],
)
def test_what_is_missing_is_said_before_anything_is_drawn(names, words, given):
  """Each is refused, and taken with what it asks for."""
  network = projection()._replace(outputs=(*OUTPUTS, "text"))
  none = dict.fromkeys(("run", "real", "moments", "vocabulary"), False)
  with pytest.raises(ValueError, match=words):
    evaluation.check(names, [network], **{**none, **given})


def test_what_goes_together_is_taken():
  networks = [projection()._replace(outputs=(*OUTPUTS, "text", "distance"))]
  of_images = ["frechet", "psnr", "lpips", "clip_score", "inception_score"]
  evaluation.check(of_images, networks, run=False, real=True, moments=False, vocabulary=True)
  evaluation.check(["frechet"], networks, run=False, real=False, moments=True, vocabulary=False)
  evaluation.check(
    ["frechet", "nats", "nfe", "wasserstein"],
    networks,
    run=True,
    real=False,
    moments=False,
    vocabulary=False,
  )
  with pytest.raises(ValueError, match=r"extractors=\['Test', 'Test'\]: expected each once"):
    evaluation.check(
      ["frechet"], 2 * networks, run=True, real=False, moments=False, vocabulary=False
    )
