from .planes import draw_planes as draw_planes
