"""What deraining does for detectors and segmentation."""
