"""What is measured, and how.

- backbones, with peers: ConvNeXt beside other libraries' ConvNeXt, speed and memory.
- timing, processes: how that is timed, each model in a process of its own.
- gpu_check, with gpu_parts: whether a GPU computes what it should; needs only torch and MMEngine.
- flops, recipe_tables: parameters and FLOPs of whole models, and the pages of the recipes.
- segmentors, with model_under_test, kept_rows, segmentors_page: trained models beside each other,
  on the same data, and their page.
- census: the backbone of every config of mmdet and mmseg swapped.
"""
