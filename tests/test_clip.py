"""CLIP: golden vector, sizes, both towers, its preprocessing, its tokens, conversion.

Compared with transformers, torch and Pillow in `tests/parity/test_clip.py`.
"""

import gzip
import json
import pathlib
import sys

import golden
import jax
import numpy as np
import pytest
from scipy import stats

from jaxgen.convert import clip as convert_clip
from jaxgen.convert import weights
from jaxgen.data import text
from jaxgen.nn import clip

SHARED = pathlib.Path(__file__).parents[2] / "shared"
TINY = {
  "embed_dim": 8,
  "image_resolution": 16,
  "vision_layers": 2,
  "vision_width": 64,
  "vision_patch_size": 8,
  "context_length": 6,
  "vocab_size": 20,
  "transformer_width": 64,
  "transformer_heads": 1,
  "transformer_layers": 2,
}
RESNET = TINY | {"image_resolution": 64, "vision_layers": (2, 1, 1, 1), "vision_width": 8}
del RESNET["vision_patch_size"]


def inputs(net):
  R = net.image_resolution
  return np.zeros((1, R, R, 3), np.float32), np.zeros((1, net.context_length), np.int32)


def shapes(args):
  net = clip.CLIP(**args)
  return jax.eval_shape(net.init, jax.random.key(0), *inputs(net))


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_golden():
  arrays, close = golden.load("clip_tiny_forward")
  state = {k.removeprefix("w."): v for k, v in arrays.items() if k.startswith("w.")}
  args, variables = convert_clip.from_torch(state)
  assert {k: args[k] for k in TINY} == TINY
  net, x, tokens = clip.CLIP(**args), arrays["in.image"].transpose(0, 2, 3, 1), arrays["in.text"]

  @jax.jit
  def run(variables, x, tokens):
    image = net.apply(variables, x, method="encode_image")
    words = net.apply(variables, tokens, method="encode_text")
    hidden = clip.TextTransformer(6, 20, 64, 1, 2).apply(
      {"params": variables["params"]["text"]}, tokens
    )
    return image, words, hidden, net.apply(variables, x, tokens)

  image, words, hidden, (per_image, per_text) = run(variables, x, tokens)
  close(image, "image_features")
  close(words["features"], "text_features")
  close(per_image, "logits_per_image")
  close(per_text.T, "logits_per_image")
  np.testing.assert_allclose(hidden, words["hidden"], rtol=1e-5, atol=1e-5)
  other = jax.jit(clip.CLIP(**args | {"activation": "gelu"}).apply)(variables, x, tokens)[0]
  assert abs(other - per_image).max() > 1e-3  # the activation shows


B32 = {}
L14 = {
  "embed_dim": 768,
  "vision_layers": 24,
  "vision_width": 1024,
  "vision_patch_size": 14,
  "transformer_width": 768,
  "transformer_heads": 12,
}
H14 = {
  "embed_dim": 1024,
  "vision_layers": 32,
  "vision_width": 1280,
  "vision_head_width": 80,
  "vision_patch_size": 14,
  "transformer_width": 1024,
  "transformer_heads": 16,
  "transformer_layers": 24,
  "activation": "gelu",
}
BIGG14 = {
  "embed_dim": 1280,
  "vision_layers": 48,
  "vision_width": 1664,
  "vision_head_width": 104,
  "vision_mlp_ratio": 4.9231,
  "vision_patch_size": 14,
  "transformer_width": 1280,
  "transformer_heads": 20,
  "transformer_layers": 32,
  "activation": "gelu",
}
RN50 = {"embed_dim": 1024, "vision_layers": (3, 4, 6, 3), "vision_width": 64}


# openai/CLIP's modules at d05afc436d78 and open_clip_torch 3.3.0's, counted by torch.
@pytest.mark.parametrize(
  "args, params",
  [
    (B32, 151_277_313),
    (B32 | {"activation": "gelu"}, 151_277_313),
    (L14, 427_616_513),
    (RN50, 102_007_137),
    (H14, 986_109_441),
    (BIGG14, 2_539_567_105),
  ],
  ids=["B-32", "OpenCLIP B-32", "L-14", "RN50", "H-14", "bigG-14"],
)
def test_sizes(args, params):
  found = shapes(args)
  assert size(found["params"]) == params
  if args is L14:
    assert size(found["params"]["text"]) == 123_060_480  # the conditioner of Stable Diffusion


def test_initialisation():
  """Statistics of the authors' initialize_parameters."""
  net = clip.TextTransformer(context_length=77, vocab_size=500, width=256, heads=4, layers=2)
  params = jax.jit(net.init)(jax.random.key(0), np.zeros((1, 77), np.int32))["params"]
  block = params["transformer"]["block_1"]
  for array, std in [
    (params["token_embedding"]["embedding"], 0.02),
    (params["positional_embedding"], 0.01),
    (block["in_proj"]["kernel"], 256**-0.5),
    (block["out_proj"]["kernel"], 256**-0.5 * 4**-0.5),
    (block["c_fc"]["kernel"], 512**-0.5),
    (block["c_proj"]["kernel"], 256**-0.5 * 4**-0.5),
  ]:
    np.testing.assert_allclose(np.std(array), std, rtol=0.03)  # of 20,000 numbers or more
  tiny = clip.CLIP(**TINY)
  scale = jax.jit(tiny.init)(jax.random.key(0), *inputs(tiny))["params"]["logit_scale"]
  np.testing.assert_allclose(np.exp(scale), 1 / 0.07, rtol=1e-6)


def test_activations():
  x = np.linspace(-4, 4, 33, dtype=np.float32)
  gelu = jax.jit(clip.ACTIVATIONS["gelu"])(x)
  np.testing.assert_allclose(gelu, x * stats.norm.cdf(x), rtol=1e-5, atol=1e-6)
  quick = jax.jit(clip.ACTIVATIONS["quick_gelu"])(x)
  np.testing.assert_allclose(quick, x / (1 + np.exp(-1.702 * x)), rtol=1e-5, atol=1e-6)


def random_variables(args):
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    z = rng.standard_normal(leaf.shape).astype(np.float32)
    if leaf.ndim > 1:
      return z * np.float32(np.prod(leaf.shape[:-1]) ** -0.5)
    return np.float32(0.2) * z + np.float32(path[-1].key in ("scale", "var"))

  return jax.tree_util.tree_map_with_path(draw, shapes(args))


def test_text_sees_what_comes_before_and_is_read_at_its_end():
  net, variables = clip.CLIP(**TINY), random_variables(TINY)
  tokens = np.array([[5, 1, 2, 19, 0, 0]], np.int32)
  changed = np.repeat(tokens, 6, axis=0)
  changed[np.arange(6), np.arange(6)] += np.where(np.arange(6) == 3, -1, 1).astype(np.int32)
  encode = jax.jit(lambda tokens: net.apply(variables, tokens, method="encode_text"))
  found = encode(np.concatenate([tokens, changed]))
  moved = np.abs(found["hidden"][1:] - found["hidden"][:1]).max(axis=-1) > 1e-3
  np.testing.assert_array_equal(moved, np.triu(np.ones((6, 6), bool)))  # [token changed, seen from]
  unmoved = np.abs(found["features"][1:] - found["features"][:1]).max(axis=-1) < 1e-5
  np.testing.assert_array_equal(unmoved, [False] * 4 + [True] * 2)  # its end, 19, is the fourth
  projected = found["hidden"][0, 3] @ variables["params"]["text_projection"]
  np.testing.assert_allclose(found["features"][0], projected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("args", [TINY, RESNET], ids=["ViT", "ResNet"])
def test_every_pixel_and_logit(args):
  net, variables = clip.CLIP(**args), random_variables(args)
  R = net.image_resolution
  x = np.random.default_rng(1).standard_normal((2, R, R, 3)).astype(np.float32)
  tokens = np.array([[5, 19, 0, 0, 0, 0], [7, 8, 19, 0, 0, 0], [1, 1, 1, 1, 1, 19]], np.int32)

  @jax.jit
  def run(x):
    image = net.apply(variables, x, method="encode_image")
    words = net.apply(variables, tokens, method="encode_text")["features"]
    slope = jax.grad(lambda x: net.apply(variables, x, method="encode_image")[0].sum())(x)
    return image, words, slope, net.apply(variables, x, tokens)

  image, words, slope, (per_image, per_text) = jax.tree.map(np.float64, run(x))
  unit = lambda h: h / np.sqrt((h**2).sum(axis=1, keepdims=True))
  expected = np.exp(variables["params"]["logit_scale"]) * unit(image) @ unit(words).T
  np.testing.assert_allclose(per_image, expected, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(per_text, expected.T, rtol=1e-5, atol=1e-5)
  assert (slope[0] != 0).mean() > 0.9  # a ReLU may be shut
  assert (slope[1] == 0).all()


def test_bicubic_by_hand():
  up = clip.bicubic(4, 8, 8)
  # Rows stand at 1/4 and 3/4 of the way between two; Keys' cubic there, with a = -1/2.
  inner = np.array([-9, 111, 29, -3]) / 128
  np.testing.assert_allclose(up[3], inner, atol=1e-6)
  np.testing.assert_allclose(up[4], inner[::-1], atol=1e-6)
  np.testing.assert_allclose(up[1], [*inner[1:] / inner[1:].sum(), 0], atol=1e-6)  # at the border
  np.testing.assert_array_equal(clip.bicubic(5, 5, 5), np.eye(5))
  # Twice as wide where it halves: at 1/4, 3/4, 5/4 and 7/4 from the middle.
  k = lambda d: 1.5 * d**3 - 2.5 * d**2 + 1 if d < 1 else -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2
  half = np.array([k(d) for d in (1.75, 1.25, 0.75, 0.25, 0.25, 0.75, 1.25, 1.75)]) / 2
  np.testing.assert_allclose(clip.bicubic(16, 8, 8)[3, 3:11], half, atol=1e-6)
  np.testing.assert_array_equal(clip.bicubic(16, 8, 4), clip.bicubic(16, 8, 8)[2:6])


def test_preprocess():
  run = jax.jit(clip.preprocess, static_argnums=1)
  rng = np.random.default_rng(0)
  x = rng.integers(0, 256, (2, 12, 12, 3), dtype=np.uint8)
  expected = (x / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
  np.testing.assert_allclose(run(x, 12), expected, rtol=1e-5, atol=1e-6)
  wide = np.concatenate([x[:, :, :3], x, x[:, :, :2]], axis=2)  # 17 columns; 5 / 2 rounds to even
  np.testing.assert_allclose(run(wide, 12), run(wide[:, :, 2:14], 12), rtol=1e-6)
  np.testing.assert_array_equal(run(x.astype(np.float32) + np.float32(0.3), 12), run(x, 12))
  edge = np.zeros((1, 6, 6, 3), np.uint8)
  edge[:, 3:] = 255
  sharp = np.asarray(run(edge, 12)) * clip.STD + clip.MEAN  # overshoots, and is cut to 8 bits
  assert sharp.min() > -1e-6 and sharp.max() < 1 + 1e-6
  assert run(x, 224).shape == (2, 224, 224, 3)


@pytest.fixture(scope="module")
def vocabulary():
  path = SHARED / "data/tokenizers/clip_bpe_simple_vocab_16e6.txt.gz"
  if not path.exists():
    pytest.skip("the vocabulary of CLIP is not at hand")
  return path


@pytest.fixture(scope="module")
def tokenize(vocabulary):
  return text.clip_tokenizer(vocabulary)


# The example of openai/CLIP's README, its notebook, and transformers' test of its own tokenizer.
KNOWN = {
  "a diagram": [320, 22697],
  "a dog": [320, 1929],
  "a cat": [320, 2368],
  "a photo of a cat": [320, 1125, 539, 320, 2368],
  "Hello World!": [3306, 1002, 256],
  "This is a test 😊\nI was born in 92000, and this is falsé.": [
    *(589, 533, 320, 1628, 3020, 328, 739, 2683, 530, 280, 273, 271, 271, 271, 267, 537, 589, 533),
    *(2778, 82, 4166, 269),
  ],
  "生活的真谛是": [33375, 162, 112, 119, 163, 248, 226, 41570, 164, 108, 249, 42891, 363],
  "<s>\nhi<s>there": [283, 338, 285, 1883, 283, 338, 285, 997],
  "The following string should be properly encoded: Hello.": [
    *(518, 3473, 9696, 1535, 655, 12560, 524, 33703, 281, 3306, 269),
  ],
  "But ird and ปี   ird   ด": [767, 2770, 537, 1777, 505, 20278, 2770, 38825],
}


def test_tokens_that_are_known(tokenize):
  found = tokenize(list(KNOWN))
  assert found.dtype == np.int32 and found.shape == (len(KNOWN), 77)
  for row, (words, tokens) in zip(found, KNOWN.items(), strict=True):
    expected = [49406, *tokens, 49407]
    assert row.tolist() == expected + [0] * (77 - len(expected)), words


def test_words_are_cleaned_and_split(tokenize):
  same = [
    ("it's we'll I'd", "it 's we 'll i 'd"),
    ("2024", "2 0 2 4"),
    ("dog!!cat", "dog !! cat"),
    (" A \t DOG\n", "a dog"),
    ("fish &amp; chips", "fish & chips"),
    ("fish &amp;amp; chips", "fish & chips"),
    ("cafe\u0301", "caf\u00e9"),
  ]
  for texts in same:
    first, second = tokenize(list(texts))
    np.testing.assert_array_equal(first, second, err_msg=str(texts))
  first, second = tokenize(["dog!!", "dog! !"])
  assert (first != second).any()
  assert tokenize([""])[0, :3].tolist() == [49406, 49407, 0]
  assert tokenize([]).shape == (0, 77)
  assert tokenize(["a <|endoftext|> b"])[0, :5].tolist() == [49406, 320, 49407, 321, 49407]


def test_long_texts(tokenize, vocabulary):
  assert tokenize(["dog " * 75])[0, -1] == 49407
  with pytest.raises(ValueError, match="has 78 tokens: expected at most 77"):
    tokenize(["a", "dog " * 76])
  cut = tokenize(["dog " * 90], truncate=True)
  np.testing.assert_array_equal(cut, tokenize(["dog " * 75]))
  short = text.clip_tokenizer(vocabulary, context_length=4)
  assert short(["a dog", "a"]).tolist() == [[49406, 320, 1929, 49407], [49406, 320, 49407, 0]]
  with pytest.raises(ValueError, match="context_length=1"):
    text.clip_tokenizer(vocabulary, context_length=1)


def test_texts_that_are_none(tokenize):
  for bad in ("a dog", [b"a dog"], ["a", None], np.array(["a"])):
    with pytest.raises(ValueError, match="texts=.*expected a list of strings"):
      tokenize(bad)


def test_a_clean_error_without_tokenizers(monkeypatch, vocabulary):
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  with pytest.raises(ImportError, match=r"pip install jaxgen\[text\]"):
    text.clip_tokenizer(vocabulary)


def test_vocabularies_that_are_none(tmp_path):
  letters = [chr(ord("a") + i) for i in range(26)]
  pairs = [f"{a}{b} {c}{d}" for a in letters for b in letters for c in letters for d in letters]
  unknown = "\n".join(["#version", *pairs[: text.MERGES]])
  repeated = "\n".join(["#version", *["a b"] * text.MERGES])
  files = {
    "short": gzip.compress(b"#version\na b\n"),
    "three": gzip.compress(b"#version\n" + b"a b c\n" * text.MERGES),
    "bomb": gzip.compress(b"a b\n" * 2**22),
    "plain": b"#version\na b\n",
    "cut": gzip.compress(np.random.default_rng(0).bytes(9999))[:5000],
    "bytes": gzip.compress(b"\xff" * 100),
    "unknown": gzip.compress(unknown.encode()),
    "repeated": gzip.compress(repeated.encode()),
  }
  for name, data in files.items():
    path = tmp_path / f"{name}.txt.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}.txt.gz (is not a vocabulary|has merges that)"):
      text.clip_tokenizer(path)
  with pytest.raises(FileNotFoundError):
    text.clip_tokenizer(tmp_path / "nowhere.txt.gz")


def state_dict(args, layout):
  """{name: tensor} that from_torch takes back, in the names of the public code."""
  found = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(random_variables(args)):
    ours = ".".join(key.key for key in path[1:])
    module, _, array = ours.rpartition(".")
    theirs = f"{module}.{weights.ARRAYS[array]}" if array in weights.ARRAYS else ours
    for old, new in layout:
      theirs = theirs.replace(old, new)
    if array == "kernel":
      leaf = np.moveaxis(leaf, (-1, -2), (0, 1))
    if "projection" in theirs and layout is HUGGING_FACE:
      leaf = leaf.T
    if "QKV" in theirs:
      for letter, part in zip("qkv", np.split(leaf, 3), strict=True):
        found[theirs.replace("QKV", letter)] = part
    else:
      found[theirs] = leaf
  return found


# In this order; read from the code of openai/CLIP and of transformers' modeling_clip.py.
OPENAI = [
  ("text.", ""),
  ("token_embedding.embedding", "token_embedding.weight"),
  ("transformer.block_", "transformer.resblocks."),
  (".in_proj.", ".attn.in_proj_"),
  (".out_proj.", ".attn.out_proj."),
  (".c_fc.", ".mlp.c_fc."),
  (".c_proj.", ".mlp.c_proj."),
  ("attnpool.mlp.", "attnpool."),
  *((f"layer{i}_", f"layer{i}.") for i in range(1, 5)),
  ("downsample_conv", "downsample.0"),
  ("downsample_bn", "downsample.1"),
]
HUGGING_FACE = [
  ("text.token_embedding.embedding", "text_model.embeddings.token_embedding.weight"),
  ("text.positional_embedding", "text_model.embeddings.position_embedding.weight"),
  ("text.ln_final", "text_model.final_layer_norm"),
  ("text.transformer.block_", "text_model.encoder.layers."),
  ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
  ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
  ("visual.conv1", "vision_model.embeddings.patch_embedding"),
  ("visual.ln_pre", "vision_model.pre_layrnorm"),
  ("visual.ln_post", "vision_model.post_layernorm"),
  ("visual.transformer.block_", "vision_model.encoder.layers."),
  ("visual.proj", "visual_projection.weight"),
  ("text_projection", "text_projection.weight"),
  (".in_proj.", ".self_attn.QKV_proj."),
  (".out_proj.", ".self_attn.out_proj."),
  (".c_fc.", ".mlp.fc1."),
  (".c_proj.", ".mlp.fc2."),
  (".ln_1.", ".layer_norm1."),
  (".ln_2.", ".layer_norm2."),
]


@pytest.mark.parametrize(
  "args, layout",
  [(TINY, OPENAI), (RESNET, OPENAI), (TINY, HUGGING_FACE)],
  ids=["OpenAI", "ResNet", "Hugging Face"],
)
def test_conversion(args, layout, tmp_path):
  given = state_dict(args, layout)
  if layout is HUGGING_FACE:
    towers = ("text", "vision")
    buffers = {f"{x}_model.embeddings.position_ids": np.zeros(6, np.int64) for x in towers}
  else:
    numbers = ("input_resolution", "context_length", "vocab_size")
    buffers = {x: np.zeros((), np.int64) for x in numbers}
    buffers |= {"visual.layer1.0.bn1.num_batches_tracked": np.zeros((), np.int64)}
  found, variables = convert_clip.from_torch(given | buffers)
  assert {k: found[k] for k in args} == json.loads(json.dumps(args))
  assert found["activation"] == "quick_gelu"
  jax.tree.map(np.testing.assert_array_equal, variables, random_variables(args))

  halves = {k: v.astype(np.float16) for k, v in given.items()}
  _, rounded = convert_clip.from_torch(halves)
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(x, np.float32(np.float16(y))), rounded, variables
  )
  assert {x.dtype for x in jax.tree.leaves(rounded)} == {np.dtype("float32")}
  assert convert_clip.from_torch(given, activation="gelu")[0]["activation"] == "gelu"

  file = tmp_path / "clip.safetensors"
  weights.write(file, variables, {"network": "clip", "args": json.dumps(found)})
  net, loaded, _ = weights.load(file, "clip", clip.CLIP, inputs)
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
  assert jax.jit(net.apply)(loaded, *inputs(net))[0].shape == (1, 1)

  ends = ("proj", "attnpool.positional_embedding", "projection.weight", "1.layer_norm1.weight")
  for name in [k for i, k in enumerate(given) if i % 20 == 0 or k.endswith(ends)]:
    with pytest.raises(KeyError, match=f"'{name}' is missing"):
      convert_clip.from_torch({k: v for k, v in given.items() if k != name})
  with pytest.raises(ValueError, match="no place for .'some.weight'"):
    convert_clip.from_torch({**given, "some.weight": np.zeros(3)})
  bias = next(name for name in given if name.endswith("ln_final.bias") or "final_layer" in name)
  with pytest.raises(ValueError, match=f"{bias} is .3,. in our order of axes: expected .64,."):
    convert_clip.from_torch({**given, bias: np.zeros(3)})
  with pytest.raises(ValueError, match="activation='relu': expected gelu or quick_gelu"):
    convert_clip.from_torch(given, activation="relu")


def test_large_image_towers_have_16_heads_and_gelu():
  large = TINY | {"vision_width": 1040, "vision_layers": 1, "vision_mlp_ratio": 512 / 1040}
  given = state_dict(large | {"vision_head_width": 65}, OPENAI)
  args, variables = convert_clip.from_torch(given)
  assert args == large | {"vision_head_width": 65, "activation": "gelu"}
  assert variables["params"]["visual"]["transformer"]["block_0"]["c_fc"]["bias"].shape == (512,)
  assert convert_clip.from_torch(given, activation="quick_gelu")[0]["activation"] == "quick_gelu"


def test_published_digests_are_whole():
  assert len(convert_clip.PUBLISHED) == 9
  for digits in convert_clip.PUBLISHED.values():
    assert len(digits) == 64 and int(digits, 16)


BAD_FIELDS = [
  ({"vision_patch_size": 7}, "vision_patch_size=7: expected a divisor of image_resolution, 16"),
  ({"transformer_heads": 3}, "heads=3: expected a divisor of the width, 64"),
  ({"transformer_heads": 0}, "heads=0"),
  ({"vision_head_width": 24}, "vision_head_width=24"),
  ({"vision_head_width": 0}, "vision_head_width=0"),
  ({"activation": "relu"}, "activation='relu': expected gelu or quick_gelu"),
  ({"vision_layers": (1, 1, 1, 1)}, "image_resolution=16: expected a multiple of 32"),
]


@pytest.mark.parametrize("field, message", BAD_FIELDS, ids=[str(f) for f, _ in BAD_FIELDS])
def test_fields_that_make_no_network(field, message):
  with pytest.raises(ValueError, match=message):
    shapes(TINY | field)


def test_other_inputs_are_refused():
  net, variables = clip.CLIP(**TINY), random_variables(TINY)
  tokens, x = np.zeros((2, 6), np.int32), np.zeros((2, 16, 16, 3), np.float32)
  for bad in (x[0], x[:, :8], x[..., :1], x.transpose(0, 3, 1, 2)):
    with pytest.raises(ValueError, match=r"x.shape=.*expected \[B, 16, 16, 3\]"):
      net.apply(variables, bad, method="encode_image")
  for bad in (x.astype(np.uint8), x.astype(np.float16)):
    with pytest.raises(ValueError, match="x.dtype=.*expected float32, from clip.preprocess"):
      net.apply(variables, bad, method="encode_image")
  for bad in (tokens[0], tokens[:, :5], tokens[..., None]):
    with pytest.raises(ValueError, match=r"tokens.shape=.*expected \[B, 6\]"):
      net.apply(variables, bad, method="encode_text")
  with pytest.raises(ValueError, match="tokens.dtype='float32': expected integers"):
    net.apply(variables, tokens.astype(np.float32), method="encode_text")
  pixels = np.zeros((1, 8, 8, 3), np.uint8)
  for bad in (pixels[0], pixels[..., :1], pixels.astype(np.float64)):
    with pytest.raises(ValueError, match="x.(shape|dtype)="):
      clip.preprocess(bad)
  for bad in (0, -1, 224.0):
    with pytest.raises(ValueError, match="size="):
      clip.preprocess(pixels, bad)
