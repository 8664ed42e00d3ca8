# AdamW as Mask2Former is trained: the backbone at a tenth of the rate, no weight decay for norms
# and embeddings. It has no layer-wise decay.
embedding = dict(lr_mult=1.0, decay_mult=0.0)
vector = dict(lr_mult=0.1, decay_mult=0.0)  # norms and layer scale of the backbone
# Of several keys in a name the longest counts, so that norms of the backbone are named in full: for
# the depths of S and larger sizes, some of which T does not have.
norms = ['backbone.norm', 'backbone.downsample_layers.0.1']
norms += [f'backbone.downsample_layers.{i}.0' for i in (1, 2, 3)]
for stage, depth in enumerate((3, 3, 27, 3)):
    for block in range(depth):
        norms += [f'backbone.stages.{stage}.{block}.{name}' for name in ('norm', 'gamma')]

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        custom_keys={
            'backbone': dict(lr_mult=0.1, decay_mult=1.0),
            'query_embed': embedding,
            'query_feat': embedding,
            'level_embed': embedding,
            **dict.fromkeys(norms, vector),
        },
        norm_decay_mult=0.0,
    ),
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)
del stage, depth, block
