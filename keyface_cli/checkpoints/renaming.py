"""From the published files' tensor names to ours: one table per network.

A table is a list of rules, a pattern and what takes its place, applied to a name from top to
bottom. Nothing is guessed: a published tensor that no rule leads to one of ours, and one of ours
that no published tensor becomes, are errors that name it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from keyface_cli.errors import WeightsError

Rule = tuple[str, str | Callable[[re.Match[str]], str]]
State = dict[str, Tensor]

# In keyframe.pt and interpolation.pt: left from training (LPIPS), and an encoder never used.
UNUSED = re.compile(r"loss_fn\.lpips\.|conditioner\.embedders\.0\.encoder\.")
# In the encoders' files: what pre-training masked with, and heads for other tasks.
UNUSED_BY_ENCODER = {
    "wavlm": re.compile(r"mask_emb$"),
    "wav2vec2": re.compile(r"masked_spec_embed$|lm_head\."),
    "beats": re.compile(r"predictor\."),
}
UNET = re.compile(
    r"(model\.)?(diffusion_model\.|learned_mask$)|conditioner\.embedders\.\d\.linear\."
)
VAE = re.compile(r"first_stage_model\.")


def split(official: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Sort the tensors of a published keyframe or interpolation file by network.

    Args:
        official: the file's `module`, DeepSpeed's name prefix or not.

    Returns:
        "unet", with the audio projection and the learned missing frame, "vae", and "unused", which
        only training needed.

    Raises:
        WeightsError: a name belongs to neither.
    """
    parts: dict[str, dict[str, Tensor]] = {"unet": {}, "vae": {}, "unused": {}}
    for full_name, tensor in official.items():
        name = full_name.removeprefix("_forward_module.")
        if UNET.match(name):
            parts["unet"][name] = tensor
        elif VAE.match(name):
            parts["vae"][name] = tensor
        elif UNUSED.match(name):
            parts["unused"][name] = tensor
        else:
            raise WeightsError(f"unexpected tensor: {full_name}")
    return parts


def rename_unet(
    official: Mapping[str, Tensor], unet: nn.Module, layers_per_block: int = 2
) -> State:
    """Name the tensors of a published video UNet as `models.unet.VideoUNet` does.

    Args:
        official: `split(...)["unet"]`; the published guide has no audio projection of its own and
            takes that of the network it guides.
        unet: the network that they are for; meta tensors will do.
        layers_per_block: residual blocks per level of that network.

    Returns:
        Tensors for `unet.load_state_dict`, none missing, none left over.

    Raises:
        WeightsError: a tensor is unexpected, missing or of another shape.
    """
    return _rename(official, _unet_rules(layers_per_block), unet.state_dict())


def rename_vae(
    official: Mapping[str, Tensor],
    vae: nn.Module,
    levels: int = 4,
    encoder: Mapping[str, Tensor] | None = None,
) -> State:
    """Name the tensors of a published autoencoder as diffusers' AutoencoderKLTemporalDecoder does.

    Args:
        official: `split(...)["vae"]`; its encoder may be absent where another is given.
        vae: the autoencoder that they are for; meta tensors will do.
        levels: number of its resolutions.
        encoder: the encoder and its `quant_conv` under diffusers' names, in the place of the
            published file's, which has no `quant_conv`: then ours becomes the identity.

    Returns:
        Tensors for `vae.load_state_dict`, none missing, none left over.

    Raises:
        WeightsError: a tensor is unexpected, missing or of another shape.
    """
    expected = vae.state_dict()
    if encoder is None:
        width = len(expected["quant_conv.bias"])
        encoder = {
            "quant_conv.weight": torch.eye(width)[:, :, None, None],
            "quant_conv.bias": torch.zeros(width),
        }
    else:
        ours = re.compile(r"first_stage_model\.encoder\.")
        official = {name: t for name, t in official.items() if not ours.match(name)}
    return _rename({**encoder, **official}, _vae_rules(levels), expected)


def rename_wavlm(official: Mapping[str, Tensor], wavlm: nn.Module) -> State:
    """Name the tensors of the published WavLM as transformers' WavLMModel does; see `rename_unet`.

    The embedding that masks in pre-training is dropped where the model has none.
    """
    return _rename_encoder("wavlm", official, _WAVLM_RULES, wavlm)


def rename_wav2vec2(official: Mapping[str, Tensor], wav2vec2: nn.Module) -> State:
    """Name the tensors of a Wav2Vec2ForCTC, old or new, as Wav2Vec2Model does; see `rename_unet`.

    The head that spells is dropped, and the embedding that masks where the model has none.
    """
    bare = {name.removeprefix("wav2vec2."): tensor for name, tensor in official.items()}
    return _rename_encoder("wav2vec2", bare, _WAV2VEC2_RULES, wav2vec2)


def rename_beats(official: Mapping[str, Tensor], beats: nn.Module) -> State:
    """Name the tensors of the published BEATs as `models.beats.BEATs` does; see `rename_unet`.

    The classifier is dropped. The table of relative positions is stored in every layer, and once
    here.

    Raises:
        WeightsError: as in `rename_unet`, or those tables differ.
    """
    kept = dict(official)
    table = re.compile(r"encoder\.layers\.(\d+)\.self_attn\.relative_attention_bias\.weight")
    tables = [name for name in kept if table.fullmatch(name)]
    for name in tables[1:]:
        if not torch.equal(kept.pop(name), kept[tables[0]]):
            raise WeightsError(f"the layers' tables of relative positions differ: {name}")
    return _rename_encoder("beats", kept, _BEATS_RULES, beats)


def _rename_encoder(
    name: str, official: Mapping[str, Tensor], rules: Sequence[Rule], module: nn.Module
) -> State:
    expected, unused = module.state_dict(), UNUSED_BY_ENCODER[name]
    masks = expected.keys() & {"masked_spec_embed"}  # some models keep it
    kept = {
        key: tensor
        for key, tensor in official.items()
        if not unused.match(key) or (masks and "mask" in key)
    }
    return _rename(kept, rules, expected)


def _rename(
    official: Mapping[str, Tensor], rules: Sequence[Rule], expected: Mapping[str, Tensor]
) -> State:
    """Apply the rules to every name and hold the result against what is expected."""
    renamed: State = {}
    for official_name, tensor in official.items():
        name = official_name
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if name not in expected or name in renamed:
            raise WeightsError(f"unexpected tensor: {official_name}")
        shape = expected[name].shape
        if tensor.dim() == 4 and tensor.shape == (*shape, 1, 1):
            tensor = tensor[:, :, 0, 0]  # a 1 x 1 convolution that is a linear layer here
        if tensor.shape != shape:
            found, wanted = tuple(tensor.shape), tuple(shape)
            raise WeightsError(f"tensor {official_name} has shape {found}, not {wanted}")
        renamed[name] = tensor
    missing = expected.keys() - renamed.keys()
    if missing:
        raise WeightsError(f"missing tensor: {min(missing)}", f"{len(missing)} in all")
    return renamed


_RESIDUAL_RULES: tuple[Rule, ...] = (
    (r"in_layers\.0", "norm1"),
    (r"in_layers\.2", "conv1"),
    (r"emb_layers\.1", "time_emb_proj"),
    (r"out_layers\.0", "norm2"),
    (r"out_layers\.3", "conv2"),
    (r"skip_connection", "conv_shortcut"),
)


def _unet_rules(layers: int) -> tuple[Rule, ...]:
    """The published blocks are numbered through all levels."""
    kinds = {"0": "resnets", "1": "attentions"}  # by place in a published block

    def down(found: re.Match[str]) -> str:
        level, index = divmod(int(found[1]) - 1, layers + 1)
        if index == layers:
            return f"down_blocks.{level}.downsamplers.0.conv."
        return f"down_blocks.{level}.{kinds.get(found[2])}.{index}."

    def up(found: re.Match[str]) -> str:
        level, index = divmod(int(found[1]), layers + 1)
        if found[3]:  # last in its block, after the transformer where there is one
            return f"up_blocks.{level}.upsamplers.0.conv."
        return f"up_blocks.{level}.{kinds.get(found[2])}.{index}."

    return (
        (r"^conditioner\.embedders\.\d\.linear\.", "audio_projection."),
        (r"^(model\.)?learned_mask$", "missing_frame"),
        (r"^(model\.)?diffusion_model\.", ""),
        (r"^time_embed\.0", "time_embedding.linear_1"),
        (r"^time_embed\.2", "time_embedding.linear_2"),
        (r"^label_emb\.0\.0", "add_embedding.linear_1"),
        (r"^label_emb\.0\.2", "add_embedding.linear_2"),
        (r"^out\.0", "conv_norm_out"),
        (r"^out\.2", "conv_out"),
        (r"^input_blocks\.0\.0", "conv_in"),
        (r"^input_blocks\.(\d+)\.(\d)\.(?:op\.)?", down),
        (r"^middle_block\.0", "mid_block.resnets.0"),
        (r"^middle_block\.1", "mid_block.attentions.0"),
        (r"^middle_block\.2", "mid_block.resnets.1"),
        (r"^output_blocks\.(\d+)\.(\d)\.(conv\.)?", up),
        (r"(resnets\.\d+)\.time_stack", r"\1.temporal_res_block"),
        (r"(resnets\.\d+)\.(in_|emb_|out_|skip_)", r"\1.spatial_res_block.\2"),
        *_RESIDUAL_RULES,
        (r"(attentions\.\d+)\.time_stack", r"\1.temporal_transformer_blocks"),
        (r"time_pos_embed\.0", "time_pos_embed.linear_1"),
        (r"time_pos_embed\.2", "time_pos_embed.linear_2"),
    )


def _vae_rules(levels: int) -> tuple[Rule, ...]:
    """The published decoder numbers its levels from the finest."""

    def up(found: re.Match[str]) -> str:
        return f"up_blocks.{levels - 1 - int(found[1])}."

    return (
        (r"^first_stage_model\.", ""),
        (r"\bdown\.(\d+)\.", r"down_blocks.\1."),
        (r"\bup\.(\d+)\.", up),
        (r"\.block\.(\d+)", r".resnets.\1"),
        (r"downsample\.conv", "downsamplers.0.conv"),
        (r"upsample\.conv", "upsamplers.0.conv"),
        (r"mid\.block_1", "mid_block.resnets.0"),
        (r"mid\.block_2", "mid_block.resnets.1"),
        (r"mid\.attn_1", "mid_block.attentions.0"),
        (r"(attentions\.0)\.norm", r"\1.group_norm"),
        (r"(attentions\.0)\.([qkv])\b", r"\1.to_\2"),
        (r"(attentions\.0)\.(?:proj_out|proj_attn)", r"\1.to_out.0"),
        # diffusers' own older names
        (r"(attentions\.0)\.query", r"\1.to_q"),
        (r"(attentions\.0)\.key", r"\1.to_k"),
        (r"(attentions\.0)\.value", r"\1.to_v"),
        (r"conv_out\.time_mix_conv", "time_conv_out"),
        (r"\bnorm_out", "conv_norm_out"),
        (r"nin_shortcut", "conv_shortcut"),
        (r"^(decoder\..*resnets\.\d+)\.(norm|conv)", r"\1.spatial_res_block.\2"),
        (r"(resnets\.\d+)\.time_stack", r"\1.temporal_res_block"),
        *_RESIDUAL_RULES,
        (r"(resnets\.\d+)\.mix_factor", r"\1.time_mixer.mix_factor"),
    )


_WAVLM_RULES: tuple[Rule, ...] = (  # to the names of transformers
    (r"^layer_norm", "feature_projection.layer_norm"),
    (r"^post_extract_proj", "feature_projection.projection"),
    (r"^mask_emb$", "masked_spec_embed"),
    (r"(conv_layers\.\d+)\.0\.weight", r"\1.conv.weight"),
    (r"(conv_layers\.0)\.2\.", r"\1.layer_norm."),
    (r"pos_conv\.0\.weight_g", "pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"pos_conv\.0\.weight_v", "pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"pos_conv\.0\.bias", "pos_conv_embed.conv.bias"),
    (r"self_attn\.grep_linear", "attention.gru_rel_pos_linear"),
    (r"self_attn\.grep_a", "attention.gru_rel_pos_const"),
    (r"self_attn\.relative_attention_bias", "attention.rel_attn_embed"),
    (r"self_attn_layer_norm", "layer_norm"),
    (r"self_attn\.", "attention."),
    (r"\bfc1", "feed_forward.intermediate_dense"),
    (r"\bfc2", "feed_forward.output_dense"),
)

_WAV2VEC2_RULES: tuple[Rule, ...] = (  # files from before torch's parametrizations
    (r"pos_conv_embed\.conv\.weight_g", "pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"pos_conv_embed\.conv\.weight_v", "pos_conv_embed.conv.parametrizations.weight.original1"),
)

_BEATS_RULES: tuple[Rule, ...] = (  # to the names of `models.beats`
    (r"^layer_norm", "patch_norm"),
    (r"^post_extract_proj", "patch_projection"),
    (r"^encoder\.", ""),
    (r"^layer_norm", "norm"),
    (r"^pos_conv\.0\.weight_g", "position_conv.parametrizations.weight.original0"),
    (r"^pos_conv\.0\.weight_v", "position_conv.parametrizations.weight.original1"),
    (r"^pos_conv\.0\.bias", "position_conv.bias"),
    (r"^layers\.\d+\.self_attn\.relative_attention_bias", "relative_bias"),
    (r"self_attn\.grep_linear", "gate"),
    (r"self_attn\.grep_a", "gate_scale"),
    (r"self_attn_layer_norm", "attention_norm"),
    (r"self_attn\.", ""),
    (r"final_layer_norm", "ffn_norm"),
)
