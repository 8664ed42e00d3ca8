"""Packaging of convnext_dense.

The OpenMMLab packages are deliberately not requirements: two families (onedl-* and upstream) own
the same import names, and asking for one would overwrite the other without a word. Install the one
that you use first.
"""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name='convnext_dense',
    version='0.1.0',
    description='ConvNeXt for mmdet 3 and mmseg 1: backbones, recipes, weights, comparisons',
    keywords='ConvNeXt, backbone, object detection, semantic segmentation, OpenMMLab',
    classifiers=[
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=find_packages(include=['convnext_dense', 'convnext_dense.*']),
    package_data={'convnext_dense': ['templates/*.html']},
    install_requires=['torch>=2.1'],
)
