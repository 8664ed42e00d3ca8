"""Packaging of convnext_dense.

The OpenMMLab packages are deliberately not requirements: two families (onedl-* and upstream) own the same import
names, and asking for one would overwrite the other without a word. Install the one you use first.
"""

from setuptools import find_packages, setup

setup(
    name='convnext_dense',
    version='0.1.0',
    description='ConvNeXt backbones, recipes and layer-wise learning-rate decay for mmdet 3 and mmseg 1',
    long_description=open('README.md', encoding='utf-8').read(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['convnext_dense', 'convnext_dense.*']),
    package_data={'convnext_dense': ['templates/*.html']},
    install_requires=['torch>=2.1'],
)
