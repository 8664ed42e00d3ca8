_base_ = '_base_/upernet_street.py'
model = dict(
    backbone=dict(arch='femto'),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192),
)
