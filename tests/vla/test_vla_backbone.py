import dataclasses
import json

import pytest
import torch
from tiny_policy import BACKBONE
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from pyramid.errors import ConfigError
from vla.backbone import build_backbone, restore_backbone
from vla.config import BackboneConfig
from vla.text import byte_tokenizer, encode_texts, tokenizer_to_json

IMAGE = 3


def observation(n_views=1):
    g = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, n_views, 16, 16, 3), dtype=torch.uint8, generator=g)
    ids, mask = encode_texts(byte_tokenizer(), ["pick it up", "go"], 16)
    return images, torch.from_numpy(ids), torch.from_numpy(mask)


@pytest.fixture
def published(tmp_path):
    """A tiny Llava with four language layers, saved as its publisher would."""
    torch.manual_seed(5)
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16,
            patch_size=8,
        ),
        text_config=LlamaConfig(
            vocab_size=300, hidden_size=24, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
            max_position_embeddings=64, pad_token_id=0,
        ),
        image_token_index=IMAGE, vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(tokenizer_to_json(byte_tokenizer()))
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]})
    )
    return tmp_path, model


@pytest.mark.parametrize(
    ("mean", "std"), [((0.5,) * 3, (0.25,) * 3), ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)), ((0.5,) * 3, (0.2, 0.3, 0.4))]
)
def test_pixels_are_normalised_by_channel(mean, std):
    backbone, _ = build_backbone(BACKBONE)
    images = observation(n_views=2)[0]
    spec = dataclasses.replace(backbone.spec, image_mean=mean, image_std=std)
    found = type(backbone)(backbone.model, spec).pixels(images)
    wanted = (images.permute(0, 1, 4, 2, 3).flatten(0, 1) / 255.0 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(
        std
    ).view(3, 1, 1)
    torch.testing.assert_close(found, wanted)


def published_config(path, **changes):
    return BackboneConfig(
        **{"pretrained": str(path), "tap_layer": 2, "max_text_tokens": 16, "image_size_px": 16, **changes}
    )


def test_published_weights_give_the_hidden_states_of_transformers(published):
    path, model = published
    backbone, _ = build_backbone(published_config(path))
    images, ids, mask = observation()
    with torch.no_grad():
        context, context_mask = backbone.eval()(images, ids, mask)
        # The peer: transformers' own forward on a prompt "<bos> <image> x 4 text", unpadded, one sample at a time.
        for row in range(2):
            real = ids[row][mask[row]]
            prompt = torch.cat([real[:1], torch.full((4,), IMAGE), real[1:]])[None]
            pixels = images[row].permute(0, 3, 1, 2) / 255
            std = torch.tensor([0.2, 0.3, 0.4])[:, None, None]
            pixels = (pixels - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / std
            want = model(input_ids=prompt, pixel_values=pixels, output_hidden_states=True).hidden_states[2]
            assert torch.allclose(context[row][context_mask[row]], want[0], atol=1e-5)


def test_published_weights_survive_a_rebuild_without_their_source(published):
    path, _ = published
    backbone, _ = build_backbone(published_config(path))
    assert len(backbone.model.language_model.layers) == 2
    copy = restore_backbone(json.loads(json.dumps(backbone.spec.to_dict())))
    copy.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        assert torch.equal(copy.eval()(*observation())[0], backbone.eval()(*observation())[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tap_layer": 5}, "tap_layer is 5.*has 4"),
        ({"image_size_px": 32}, "image_size_px is 32.*takes 16"),
        ({"pretrained": "someone/something", "revision": "main"}, "commit"),
    ],
)
def test_published_weights_that_do_not_fit_are_refused(published, changes, message):
    with pytest.raises(ConfigError, match=message):
        build_backbone(published_config(published[0], **changes))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be loaded"):
        build_backbone(published_config(tmp_path))


def test_sequence_is_first_token_views_rest_and_padding():
    backbone, _ = build_backbone(dataclasses.replace(BACKBONE, n_views=2))
    images, ids, mask = observation(n_views=2)
    context, context_mask = backbone.eval()(images, ids, mask)
    assert context.shape == (2, 2 * 4 + 16, 32)
    # 1 + 8 view tokens + the other bytes of the text.
    assert context_mask.sum(1).tolist() == [8 + 1 + len("pick it up"), 8 + 1 + len("go")]
    assert all(row[: row.sum()].all() for row in context_mask)


def test_padding_reaches_no_real_token():
    backbone, _ = build_backbone(BACKBONE)
    images, ids, mask = observation()
    backbone.eval()
    context, context_mask = backbone(images, ids, mask)
    changed, _ = backbone(images, torch.where(mask, ids, 77), mask)
    assert torch.equal(context[context_mask], changed[context_mask])
    other, _ = backbone(images, torch.where(mask, 77, ids), mask)
    assert not torch.allclose(context[context_mask], other[context_mask])
