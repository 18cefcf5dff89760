"""The centre of an image: what is kept of it when it is resized to another aspect ratio."""


def centre_box(width: int, height: int, to_width: int, to_height: int) -> tuple[int, int, int, int]:
    """Returns the largest box in the middle of an image with the aspect ratio of another size.

    Args:
      width: width of the image, in pixels.
      height: its height.
      to_width: width after resizing.
      to_height: height after resizing.

    Returns:
      Its first column and row, and the column and row after its last.
    """
    scale = min(width / to_width, height / to_height)
    wide, high = round(to_width * scale), round(to_height * scale)
    left, top = (width - wide) // 2, (height - high) // 2
    return left, top, left + wide, top + high
