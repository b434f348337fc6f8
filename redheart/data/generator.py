"""Records made up in the documented schema, Korean and English, with a known answer.

Every text carries cue words of emotions and of strength. The label is drawn from a distribution that the cues
decide, so the best cross-entropy that any model can reach is that distribution's mean entropy.
"""

import math

import numpy as np

from redheart.core.seeds import stream_seed
from redheart.data.inventory import BENTHAM, EMOTIONS, SURD

_CUES = {
    "en": (
        ("delighted", "glad", "cheerful"),
        ("relied on", "believed in", "confided in"),
        ("afraid of", "anxious about", "terrified by"),
        ("astonished by", "startled by", "amazed at"),
        ("heartbroken over", "gloomy about", "grieving for"),
        ("disgusted by", "repelled by", "sickened by"),
        ("furious at", "annoyed with", "enraged by"),
    ),
    "ko": (
        ("기뻤고", "즐거웠고", "행복했고"),
        ("믿었고", "의지했고", "신뢰했고"),
        ("무서웠고", "불안했고", "두려웠고"),
        ("놀랐고", "깜짝 놀랐고", "믿기지 않았고"),
        ("슬펐고", "우울했고", "그리웠고"),
        ("역겨웠고", "혐오스러웠고", "불쾌했고"),
        ("화났고", "짜증났고", "분노했고"),
    ),
}
_PLACES = {
    "en": (
        *("the kitchen", "the office", "the station", "a wedding"),
        *("the hospital", "school", "the market", "a concert"),
    ),
    "ko": ("부엌에서", "사무실에서", "역에서", "결혼식에서", "병원에서", "학교에서", "시장에서", "공연장에서"),
}
_PEOPLE = {
    "en": (
        *("my sister", "a stranger", "my boss", "an old friend"),
        *("the neighbour", "my teacher", "my son", "the driver"),
    ),
    "ko": ("언니와", "낯선 사람과", "상사와", "옛 친구와", "이웃과", "선생님과", "아들과", "기사님과"),
}
_STRENGTH = {"en": ("slightly", "rather", "deeply"), "ko": ("조금", "꽤", "몹시")}
_NUM_CUES = 3
_CUE_PRIOR = np.array([0.16, 0.08, 0.2, 0.08, 0.24, 0.1, 0.14])
_FLOOR = 0.15
"""Weight of an emotion without any cue, beside 1 for each cue."""


def generate(num_records: int, *, seed: int) -> tuple[list[dict[str, object]], float]:
    """Raw rows of the documented schema, and the best reachable emotion cross-entropy in nats.

    About one row in fifty repeats an earlier one with a word changed: a planted near-duplicate.
    """
    random = np.random.default_rng(stream_seed(seed, "generator"))
    rows: list[dict[str, object]] = []
    entropies: list[float] = []
    for index in range(num_records):
        row, entropy = _row(random, index)
        if index and random.random() < 0.02:
            earlier = rows[int(random.integers(index))]
            row = {**earlier, "id": row["id"], "text": f"{earlier['text']}!"}
            entropy = entropies[rows.index(earlier)]
        rows.append(row)
        entropies.append(entropy)
    return rows, float(np.mean(entropies))


def _row(random: np.random.Generator, index: int) -> tuple[dict[str, object], float]:
    language = ("en", "ko")[int(random.integers(2))]
    cues = random.choice(len(EMOTIONS), size=_NUM_CUES, p=_CUE_PRIOR / _CUE_PRIOR.sum())
    strength = int(random.integers(3))
    weights = np.full(len(EMOTIONS), _FLOOR)
    np.add.at(weights, cues, 1.0)
    chances = weights / weights.sum()
    label = int(random.choice(len(EMOTIONS), p=chances))
    words = [_CUES[language][cue][int(random.integers(3))] for cue in cues]
    places, people = _PLACES[language], _PEOPLE[language]
    clauses = []
    for word in words:
        place, person = places[int(random.integers(8))], people[int(random.integers(8))]
        number, degree = int(random.integers(2, 99)), _STRENGTH[language][strength]
        if language == "en":
            clauses.append(f"At {place}, {number} days ago, I was {degree} {word} {person}.")
        else:
            clauses.append(f"{number}일 전 {place} {person} 있을 때 나는 {degree} {word} 그랬다.")
    level = (strength + 1) / 4

    def noisy(value: float) -> float:
        return round(float(np.clip(value + random.normal(0, 0.05), 0, 1)), 3)

    mood = float(chances[:2].sum() - chances[4:].sum())
    row: dict[str, object] = {
        "id": f"g{index:06d}",
        "text": " ".join(clauses),
        "title": "",
        "action": "",
        "label": label,
        "emotions": {"primary": EMOTIONS[label], "secondary": EMOTIONS[int(cues[0])], "intensity": level},
        "regret_factor": noisy(0.5 - 0.4 * mood),
        "bentham_scores": [
            noisy(level if dimension % 2 else 0.5 + 0.4 * mood * (1 - dimension / len(BENTHAM)))
            for dimension in range(len(BENTHAM))
        ],
        "surd_metrics": {name: noisy(float(chances[3]) if name == "surprise" else level) for name in SURD},
    }
    return row, -sum(chance * math.log(chance) for chance in chances)
