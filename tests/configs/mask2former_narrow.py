# What the configs beside it have in common: Mask2Former for two CPU cores, from random weights.
# Three decoder layers, 30 queries, half the channels; all of it at one rate.
narrow_width = 128
narrow_attention, narrow_feed_forward = (
    dict(embed_dims=narrow_width),
    dict(embed_dims=narrow_width, feedforward_channels=512),
)
narrow_encoding = dict(num_feats=narrow_width // 2)
narrow = dict(
    in_channels=[40, 80, 160, 320],
    feat_channels=narrow_width,
    out_channels=narrow_width,
    num_queries=30,
    pixel_decoder=dict(
        encoder=dict(
            num_layers=2,
            layer_cfg=dict(self_attn_cfg=narrow_attention, ffn_cfg=narrow_feed_forward),
        ),
        positional_encoding=narrow_encoding,
    ),
    positional_encoding=narrow_encoding,
    transformer_decoder=dict(
        num_layers=3,
        layer_cfg=dict(
            self_attn_cfg=narrow_attention,
            cross_attn_cfg=narrow_attention,
            ffn_cfg=narrow_feed_forward,
        ),
    ),
)
narrow_backbone = dict(arch='atto', drop_path_rate=0.0, init_cfg=None)
narrow_training = dict(num_points=2048)
narrow_optimiser = dict(
    optimizer=dict(lr=5e-4), paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0)
)
