# UperNet on a backbone that stays as its file has it, to the last bit. So it has no output norms,
# which would be trained: the batch norms of the head take out the scales of its maps. An auxiliary
# head would train itself alone.
_base_ = 'upernet_convnext.py'
model = dict(backbone=dict(frozen_stages=4, out_norm=False), auxiliary_head=None)
