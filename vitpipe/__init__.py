"""vitpipe: DICOM studies or GeoTIFF scenes in, an honestly judged and registered Vision Transformer out.

The package imports nothing heavy here: torch, monai, mlflow and the raster libraries load with the rooms that use them.
"""

__version__ = "0.1.0"
