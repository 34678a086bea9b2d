"""Parameters and multiply-adds of the ImageNet recipes in all sizes."""

from pathlib import Path

import pytest

from genflow.analysis.description import analyze_recipe, build_on_meta
from genflow.analysis.flops import count_generator
from genflow.config.graph import ComponentGraph

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.mark.parametrize(
    ("recipe", "millions"),
    [
        ("itarflow_b2", 119.77),
        ("itarflow_m2", 210),
        ("itarflow_l2", 392),
        ("itarflow_xl2", 692.6),
        ("biflow_b2", 133.9),
        ("biflow_m2", 235),
        ("biflow_l2", 424),
        ("biflow_xl2", 749),
    ],
)
def test_parameters(recipe, millions):
    pytest.importorskip("diffusers")
    graph = ComponentGraph.load(RECIPES / f"{recipe}_imagenet.yaml")
    generator = build_on_meta(graph, for_training=False).generator
    count = sum(parameter.numel() for parameter in generator.network.parameters()) / 1e6
    assert count == pytest.approx(millions, rel=0.005)
    published = graph.section("published").get("params_m")
    assert published is None or count == pytest.approx(published, rel=0.01)
    width = {"b2": 768, "m2": 1024, "l2": 1152, "xl2": 1536}[recipe.split("_")[1]]
    if recipe.startswith("biflow"):  # both stages of a size have one width
        assert build_on_meta(graph, for_training=False).teacher.flow_blocks[0].out.in_features == width
        assert generator.network.state_features == width


@pytest.mark.parametrize(
    ("recipe", "millions", "gmacs", "auxiliary"),
    [
        ("meanflow_b2", 131, 23.1, 0),
        ("meanflow_m2", 308, 54.0, 0),
        ("meanflow_l2", 459, 80.9, 0),
        ("meanflow_xl2", 676, 119, 0),
        ("imf_b2", 88.9, 24.9, 145.6 - 88.9),
        ("imf_m2", 173.9, 49.7, 230.6 - 173.9),
        ("imf_l2", 409.1, 116.1, 509.8 - 409.1),
        ("imf_xl2", 610.4, 174.2, 711.1 - 610.4),
    ],
)
def test_one_step_models_in_latents(recipe, millions, gmacs, auxiliary):
    pytest.importorskip("diffusers")
    graph = ComponentGraph.load(RECIPES / f"{recipe}_imagenet.yaml")
    backbone, counts = build_on_meta(graph).backbone, {"auxiliary": 0, "rest": 0}
    for name, parameter in backbone.named_parameters():
        counts["auxiliary" if name.startswith("auxiliary.") else "rest"] += parameter.numel() / 1e6
    assert counts["rest"] == pytest.approx(millions, rel=0.005)
    assert counts["auxiliary"] == pytest.approx(auxiliary, abs=0.1)
    published = graph.section("published")
    assert (published["params_m"], published["gflops"]) == (millions, gmacs)
    if recipe.endswith("_b2"):  # tracing the larger ones takes seconds
        cost = count_generator(build_on_meta(graph, for_training=False).generator)
        assert cost.generator_params / 1e6 == pytest.approx(millions, rel=0.005)
        assert cost.generator_macs / 1e9 == pytest.approx(gmacs, rel=0.005)
        assert cost.nfe == 1


@pytest.mark.parametrize(
    ("recipe", "parameters", "gmacs"),
    [
        ("jit_b16_imagenet256", 131_123_712, 25.25),
        ("jit_l16_imagenet256", 458_877_664, 88.03),
        ("jit_h16_imagenet256", 952_514_368, 182.1),
        ("jit_b32_imagenet512", 133_190_400, 25.78),
        ("jit_l32_imagenet512", 461_534_176, 88.71),
        ("jit_h32_imagenet512", 956_055_616, 183.0),
    ],
)
def test_sizes_of_jit(recipe, parameters, gmacs):
    """The paper has whole millions and whole billions (arXiv 2511.13720, tables 7 and 8)."""
    graph = ComponentGraph.load(RECIPES / f"{recipe}.yaml")
    generator = build_on_meta(graph, for_training=False).generator
    assert sum(parameter.numel() for parameter in generator.network.parameters()) == parameters
    published = graph.section("published")
    assert published["params_m"] == round(parameters / 1e6) and published["gflops"] == round(gmacs)
    if "_b" in recipe:  # tracing the larger ones takes seconds
        cost = count_generator(generator)  # one of the evaluations that a sample takes
        assert cost.generator_macs / 1e9 == pytest.approx(gmacs, rel=0.001) and cost.nfe == 99


@pytest.mark.parametrize(
    ("recipe", "parameters", "gmacs"),
    [
        ("drift_ablation_imagenet", 132_708_880, 24.5),
        ("drift_b2_imagenet", 132_708_880, 24.5),
        ("drift_l2_imagenet", 462_909_456, 86.4),
        ("wflow_b2_imagenet", 132_708_880, 24.5),
        ("wflow_l2_imagenet", 462_909_456, 86.4),
        ("wflow_xl2_imagenet", 678_929_872, 126.4),
        ("drift_b16_imagenet_pixels", 133_864_704, 24.8),
        ("drift_l16_imagenet_pixels", 464_450_304, 86.8),
    ],
)
def test_generators_of_drifting(recipe, parameters, gmacs):
    if "pixels" not in recipe:
        pytest.importorskip("diffusers")
    graph = ComponentGraph.load(RECIPES / f"{recipe}.yaml")
    generator = build_on_meta(graph, for_training=False).generator
    assert sum(parameter.numel() for parameter in generator.network.parameters()) == parameters
    published = graph.section("published")
    assert published["params_m"] == pytest.approx(parameters / 1e6, rel=0.003)
    assert published["gflops"] == pytest.approx(gmacs, rel=0.005)
    if "_b16_" in recipe or "_ablation_" in recipe:  # tracing the larger ones takes seconds
        assert count_generator(generator).generator_macs / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_features_of_drifting_are_those_of_the_paper():
    """86 features of latents, 13 more of ConvNeXt for pixels (docs/drifting.md, D10), for every label and position."""
    pytest.importorskip("diffusers")
    for recipe, count in (("drift_ablation_imagenet", 86), ("drift_b16_imagenet_pixels", 99)):
        graph = ComponentGraph.load(RECIPES / f"{recipe}.yaml")
        encoders = build_on_meta(graph).encoders
        assert 1 + sum(len(encoder.feature_names) for encoder in encoders) == count


@pytest.mark.parametrize(
    ("recipe", "millions", "gmacs"),
    [("mae_latent_256", 340.2, 18.5), ("mae_latent_640", 2126.0, 115.8), ("mae_pixel_640", 2127.1, 116.9)],
)
def test_encoders_of_drifting(recipe, millions, gmacs):
    """Without decoders; the count has the classifier, which they do not."""
    if "latent" in recipe:
        pytest.importorskip("diffusers")
    found = analyze_recipe(RECIPES / f"{recipe}.yaml")
    assert (found["published"]["params_m"], found["published"]["gflops"]) == (millions, gmacs)
    assert found["ratio_to_published"] == {"params_m": pytest.approx(1, rel=0.01), "gflops": pytest.approx(1, rel=0.01)}
    assert found["decoder_macs"] == 0 and found["nfe"] == 1
    encoder = build_on_meta(ComponentGraph.load(RECIPES / f"{recipe}.yaml")).encoder
    decoders = sum(parameter.numel() for parameter in encoder.decoder.parameters())
    assert found["generator_params"] == sum(parameter.numel() for parameter in encoder.parameters()) - decoders
