"""A reader of the `context` stream, written from docs/format.md alone; slow, and nothing is shared with the package."""

import math
from collections import defaultdict
from decimal import Decimal, localcontext
from functools import cache

import numpy as np

FIRST_WEIGHTS = {
    "column": [14000, 36000, -3000],
    "row": [65536],
    "hit": [7000, 9000, 22000, 6000, 9000, -10000],
    "sign": [36000, 15000, 15000],
    "size": [5000, 23000, 18000, 10000],
    "exponent": [65536],
}


def between(low, x, high):
    return max(low, min(x, high))


@cache
def stretch(p):
    with localcontext(prec=40):
        q = (Decimal(p) + Decimal("0.5")) / 65536
        return int((256 * (q / (1 - q)).ln()).to_integral_value())


@cache
def squash(x):
    with localcontext(prec=40):
        exact = Decimal(65536) / (1 + (Decimal(-between(-3071, x, 3071)) / 256).exp())
        return between(16, int(exact.to_integral_value()), 65520)


def side(x):
    return 0 if x == 0 else 1 if x > 0 else 2


def density(k, n, b):
    return min((k * 65536 + 16 * b) // (n + 16), 65535)


class Cell:
    def __init__(self):
        self.c = self.n = 0

    def look(self, base):
        if self.n == 0:
            self.c = 64 * base
        return self.c >> 6

    def learn(self, y):
        self.c += (y * 2**22 - self.c) * (65536 // (self.n + 2)) >> 16
        self.n = min(self.n + 1, 255)


class Stream:
    def __init__(self, data):
        self.data, self.place = data, 0
        self.low, self.high, self.code = 0, 2**32 - 1, 0
        self.profile = None
        for _ in range(4):
            self.code = self.code << 8 | self.byte()

    def byte(self):
        self.place += 1
        return self.data[self.place - 1] if self.place <= len(self.data) else 0

    def bit(self, p):
        middle = self.low + ((self.high - self.low) * p >> 16)
        y = int(self.code <= middle)
        if y:
            self.high = middle
        else:
            self.low = middle + 1
        while self.low >> 24 == self.high >> 24:
            self.low = self.low << 8 & 0xFFFFFFFF
            self.high = self.high << 8 & 0xFFFFFFFF | 0xFF
            self.code = self.code << 8 & 0xFFFFFFFF | self.byte()
        return y

    def plain(self, width):
        return int("".join(str(self.bit(32768)) for _ in range(width)) or "0", 2)

    def decide(self, kind, cells, opinions=()):
        """``cells``: (key, base) each; a base of None is the first cell's probability."""
        opinions, looked, first = list(opinions), [], None
        for place, (key, base) in enumerate(cells):
            cell = self.cells[kind, place, key]
            probability = cell.look(first if base is None else base)
            first = probability if first is None else first
            looked.append(cell)
            opinions.insert(place, stretch(probability))
        weights = self.weights[kind]
        p = squash(sum(w * o for w, o in zip(weights, opinions, strict=True)) >> 16)
        y = self.bit(p)
        e = (y * 65536 - p) * self.rate
        for i, opinion in enumerate(opinions):
            weights[i] += (opinion * e + 2**17) >> 18
        for cell in looked:
            cell.learn(y)
        return y

    def array(self, shape, dtype):
        rows = shape[0] if len(shape) > 1 else 1
        columns = math.prod(shape) // rows
        centre = 0
        if self.plain(1):
            v = self.plain(self.plain(6))
            centre = v // 2 if v % 2 == 0 else -(v + 1) // 2
        values = [[0] * columns for _ in range(rows)]
        if self.plain(1):
            self.values(values, shape, np.dtype(dtype).kind == "i" or centre != 0)
        if len(shape) > 1:
            self.profile = [sum(v != 0 for v in row) for row in values]
        return (np.array(values, np.int64) + centre).astype(dtype).reshape(shape)

    def values(self, values, shape, has_sign):
        self.cells = defaultdict(Cell)
        self.weights = {kind: list(weights) for kind, weights in FIRST_WEIGHTS.items()}
        self.rate = (2, 5, 10, 20)[self.plain(2)]
        rows, columns = len(values), len(values[0])
        dead_columns, dead_rows = self.plain(1), self.plain(1)
        units = len(self.profile) if self.profile and columns % len(self.profile) == 0 else 0
        near, far = self.distances(shape, columns, units)
        h = [self.profile[c // (columns // units)] if units else 0 for c in range(columns)]
        total = sum(self.profile) if units else 0

        live = [1] * columns
        for c in range(columns if dead_columns else 0):
            n = neighbours(live, c, near, far)
            a = (h[c] > 0) + 2 * (2 * h[c] * units > total) if units else n["up"]
            keys = [((n["left"], a), 32768), ((n["left"], n["left2"], n["behind"], n["up-right"], a), None)]
            live[c] = self.decide("column", keys, [256])
        live_rows = [1] * rows
        for r in range(rows if dead_rows else 0):
            live_rows[r] = self.decide("row", [((live_rows[r - 1] if r else 1), 60000)])

        N = K = D = 0
        column_hits = [0] * columns
        before = [0] * columns
        for r in (r for r in range(rows) if live_rows[r]):
            row, N_r, K_r, last = values[r], 0, 0, 0
            for c in (c for c in range(columns) if live[c]):
                n = neighbours(row, c, near, far)
                d = between(32, (K * 65536 + 2048) // (N + 1), 65000)
                b = between(32, d * (2 * h[c] + 1) * units // (2 * total + units), 65000) if units else d
                steps = [1, -1, *([near, -near] if near else []), *([far, -far] if far else [])]
                others = [c + step for step in steps if 0 <= c + step < columns]
                of = [
                    stretch(density(column_hits[c], D, b)),
                    stretch(density(K_r, N_r, d)),
                    stretch(density(sum(column_hits[i] for i in others), D * len(others), d)),
                ]
                base = squash(of[0] + of[1] - stretch(d))
                is_hit = {key: int(value != 0) for key, value in n.items()}
                first = is_hit["left"] + is_hit["up"] + is_hit["behind"]
                pattern = (*(is_hit[k] for k in ("left", "up", "up-right", "behind", "up-left")), before[c] != 0)
                second = sum(is_hit[k] for k in ("up-left", "up-right", "left2", "up2", "behind2"))
                nearness = min(3 * first + 2 * second + is_hit["left3"], 15)
                N, N_r = N + 1, N_r + 1
                if not self.decide("hit", [(pattern, base), (nearness, base)], [*of, 256]):
                    continue
                negative = has_sign and self.decide(
                    "sign",
                    [
                        ((side(n["left"]), side(n["up"])), 32768),
                        ((side(n["behind"]), side(n["up-right"]), side(n["up-left"])), 32768),
                        (side(last), 32768),
                    ],
                )
                crowd = first + is_hit["left2"] + is_hit["up-left"] + is_hit["up-right"]
                group = (min(crowd, 4), min(8 * column_hits[c] // (D + 1), 4))
                nearest = min(max(abs(n["left"]), abs(n["up"])), 4)
                size = self.size(nearest, min(abs(last), 5), group)
                row[c] = last = -size if negative else size
                K, K_r = K + 1, K_r + 1
                column_hits[c] += 1
            D += 1
            before = row

    def size(self, nearest, last, group):
        for k in range(1, 16):
            keys = [((k,), 32768), ((k, nearest), None), ((k, last), None), ((k, group), None)]
            if not self.decide("size", keys):
                return k
        exponent = 0
        while exponent < 32 and self.decide("exponent", [(exponent, 32768)]):
            exponent += 1
        return 16 + (2**exponent + self.plain(exponent)) - 1

    @staticmethod
    def distances(shape, columns, units):
        near = far = 0
        if len(shape) > 2:
            near, far = shape[-1], shape[-1] * shape[-2]
        elif len(shape) == 2:
            s = math.isqrt(columns // units if units else columns)
            if s * s * max(units, 1) == columns and s <= 255:
                near, far = s, s * s if units else 0
        return tuple(x if 1 < x <= 255 else 0 for x in (near, far))


def neighbours(row, c, near, far):
    """By name; ``row`` holds what is known, and stops to be read at c."""
    places = {"left": c - 1, "left2": c - 2, "left3": c - 3}
    if near:
        places |= {"up": c - near, "up2": c - 2 * near, "up-left": c - near - 1}
        places |= {"up-right": c - near + 1 if c >= near else -1}
    if far:
        places |= {"behind": c - far, "behind2": c - 2 * far}
    names = ("left", "left2", "left3", "up", "up2", "up-left", "up-right", "behind", "behind2")
    return {name: row[places[name]] if places.get(name, -1) >= 0 else 0 for name in names}
