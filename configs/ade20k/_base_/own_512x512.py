# Images and label maps of your own: images/{train,val}/*.jpg beside labels/{train,val}/*.png of the
# same names, where a pixel is the number of its class and 255 is ignored. 4 images a step on one
# GPU.
_base_ = 'ade20k_512x512.py'
dataset = dict(
    type='BaseSegDataset',
    data_root='data/own',
    img_suffix='.jpg',
    seg_map_suffix='.png',
    reduce_zero_label=False,
)
train_dataloader = dict(
    batch_size=4,
    dataset=dict(data_prefix=dict(img_path='images/train', seg_map_path='labels/train'), **dataset),
)
val_dataloader = dict(
    dataset=dict(data_prefix=dict(img_path='images/val', seg_map_path='labels/val'), **dataset)
)
test_dataloader = val_dataloader
