_base_ = '_base_/upernet_street.py'
model = dict(
    backbone=dict(arch='v2_atto'),
    decode_head=dict(in_channels=[40, 80, 160, 320]),
    auxiliary_head=dict(in_channels=160),
)
