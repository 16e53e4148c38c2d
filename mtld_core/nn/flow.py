"""Optical flow between two frames, and frames that are pushed along it or pulled back.

Flow is OpenCV's DIS (Kroeger et al. 2016) on grey, with its preset "medium" at full resolution. OpenCV is
imported where it is needed, for it takes seconds.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

SIDE = 128  # pixels: smaller frames are enlarged to it, else things of few pixels would be overlooked
LEAST_IMPORTANCE = 0.03  # pixels that what stands still counts as moving, where things meet
COVERED = 0.5  # share of a pixel, below which it is a hole
HOLE_RADIUS = 2  # pixels around a hole that fill it


def optical_flow(before, after):
    """Where the pixels of frames go: uint8 `[B, H, W, 3]` twice -> float32 `[B, H, W, 2]`, (x, y) in pixels.

    What is at p in `before` is at p + flow(p) in `after`. On the CPU.
    """
    import cv2

    size = before.shape[2:0:-1]
    scale = math.ceil(SIDE / min(size))
    dis = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    found = torch.empty(*before.shape[:3], 2)
    for flow, *pair in zip(found, before.cpu().numpy(), after.cpu().numpy(), strict=True):
        greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in pair]
        large = [cv2.resize(grey, None, None, scale, scale, cv2.INTER_CUBIC) for grey in greys]
        small = cv2.resize(dis.calc(*large, None), size, interpolation=cv2.INTER_AREA)
        flow[:] = torch.from_numpy(small / scale)
    return found


def places(flow):
    """Where flow `[B, H, W, 2]` in pixels leads, as `grid_sample` takes it without `align_corners`."""
    height, width = flow.shape[1:3]
    here = F.affine_grid(torch.eye(2, 3)[None], [1, 1, height, width], align_corners=False)
    return here + 2 * flow / torch.tensor([width, height])


def pulled(pictures, flow):
    """What stands where the flow leads: `[B, H, W, C]`, `[B, H, W, 2]` -> float `[B, H, W, C]`, bilinear.

    Beyond a picture's border is its border.
    """
    found = F.grid_sample(pictures.movedim(-1, 1), places(flow), padding_mode="border", align_corners=False)
    return found.movedim(1, -1)


def pushed(frames, flow):
    """Move each pixel of frames along its flow: uint8 `[B, H, W, 3]`, `[B, H, W, 2]` -> uint8 `[B, H, W, 3]`.

    All on the CPU. A pixel is shared by the four that it comes to lie between. Where several meet, they are
    averaged, and what moves farther counts more, as it is likely to be in front (after Niklaus and Liu 2020).
    Where none comes to lie, the surroundings are continued (OpenCV's Navier-Stokes inpainting); when all have
    left, the frame stays as it was.
    """
    import cv2

    importance = LEAST_IMPORTANCE + flow.norm(dim=-1, keepdim=True)
    parts = torch.cat([frames * importance, importance, torch.ones_like(importance)], -1).movedim(-1, 1)
    # the gradient of sampling at places is to add to these places
    added = torch.ops.aten.grid_sampler_2d_backward(parts, parts, places(flow), 0, 0, False, (True, False))
    colours, importance, cover = added[0].movedim(1, -1).split((3, 1, 1), -1)
    holes = cover < COVERED
    made = torch.where(holes, frames, (colours / importance).round().byte()).numpy()
    pairs = zip(made, holes.byte().numpy(), strict=True)
    return torch.from_numpy(np.stack([cv2.inpaint(*each, HOLE_RADIUS, cv2.INPAINT_NS) for each in pairs]))
