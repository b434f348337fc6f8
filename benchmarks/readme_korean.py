"""The generated parts of README.md in Korean: every sentence by its pattern, so that the figures are carried over.

A sentence without a pattern is an error that names it: who changes the English one changes the Korean one here.
"""

import re

SENTENCES = {
    # The table of measurements.
    "what": "측정한 것",
    "measured": "결과",
    "by": "측정 명령",
    "`full`, {card} held to {budget}: peak of the whole process": (
        "`full`, {budget}로 제한한 {card}: 프로세스 전체의 최대 메모리"
    ),
    "{peak} at micro-batch {size} (planned {planned})": "마이크로배치 {size}에서 {peak} (계획 {planned})",
    "`{strategy}` ran out of memory, as planned": "`{strategy}`는 계획대로 메모리가 부족했음",
    "one optimizer step on the host, {cores} cores of an {cpu}: AVX-512 with VBMI": (
        "호스트에서의 옵티마이저 한 스텝, {cpu}의 {cores}개 코어: VBMI를 포함한 AVX-512"
    ),
    "the same, {cores} cores of an {cpu}: all held to AVX2": ("같은 것, {cpu}의 {cores}개 코어: 모두 AVX2로 제한"),
    "{speed}: {deepspeed} times as fast as DeepSpeedCPUAdam's whole path, {bits} times bitsandbytes, at {share} of the "
    "speed of a plain pass over memory": (
        "{speed}: DeepSpeedCPUAdam 전체 경로의 {deepspeed}배, bitsandbytes의 {bits}배 속도이며, 메모리를 단순히 한 번 "
        "훑는 속도의 {share}"
    ),
    "its states": "그 옵티마이저 상태",
    "{size} B/param": "{size} B/param",
    "training `small` in the default strategy on real records, the whole step": (
        "실제 레코드로 `small`을 기본 전략으로 학습, 스텝 전체"
    ),
    "{rate} records a second: {raw} times a raw DeepSpeed loop with bitsandbytes, {trainer} times the Hugging Face "
    "Trainer": (
        "초당 레코드 {rate}개: bitsandbytes를 쓴 순수 DeepSpeed 루프의 {raw}배, Hugging Face Trainer의 {trainer}배"
    ),
    "`redheart predict`, `small`, texts a second one by one and {batch} at a time": (
        "`redheart predict`, `small`, 초당 텍스트 수: 하나씩 읽을 때와 {batch}개씩 읽을 때"
    ),
    "{single} and {many}, of which the frozen encoder takes {share}": (
        "{single}개와 {many}개, 시간의 {share}는 고정된 인코더의 몫"
    ),
    "`small` on real records, ten epochs, three seeds: validation loss with {few}-bit states over {many}-bit ones": (
        "실제 레코드로 `small`, 열 에포크, 세 시드: {many}비트 상태에 대한 {few}비트 상태의 검증 손실 차이"
    ),
    "`full` on the CPU, real records: masters, gradients, states on the host": (
        "CPU에서 `full`, 실제 레코드: 호스트의 마스터 가중치, 그래디언트, 옵티마이저 상태"
    ),
    "{parts} B/param": "{parts} B/param",
    "the whole process peaks at {peak}": "프로세스 전체의 최대치는 {peak}",
    "gradient of {count} micro-batches against its float{bits} sum; bytes over the bus": (
        "마이크로배치 {count}개의 그래디언트와 float{bits} 합의 차이; 버스를 지나는 바이트"
    ),
    "{ours} and {bytes} (DeepSpeed: {theirs} and {others})": "{ours}, {bytes} (DeepSpeed: {theirs}, {others})",
    "parameters of `full` that learn from one batch of {count} real records": (
        "실제 레코드 {count}개짜리 배치 하나에서 학습되는 `full`의 파라미터"
    ),
    "{share}, no tensor without a gradient": "{share}, 그래디언트가 없는 텐서는 없음",
    "SIGKILL at random instants, each run resumed, its end compared with that of an unbroken one": (
        "임의의 순간에 SIGKILL, 매번 실행을 재개해 그 결과를 끊기지 않은 실행의 결과와 비교"
    ),
    "{kills} kills, {saving} of them while saving, {losses} losses": (
        "강제 종료 {kills}번, 그중 저장 도중 {saving}번, 손실 {losses}건"
    ),
    "a resume state of `full`": "`full`의 재개 상태 하나",
    "{count} snapshots of it": "그 스냅샷 {count}개의 크기",
    "{plain} GiB": "{plain} GiB",
    "training waits for a save of `small`": "`small`을 저장할 때 학습이 기다리는 시간",
    "a resume's peak memory over a fresh start's": "새로 시작할 때에 대한 재개할 때의 최대 메모리 차이",
    "at most {share} of a step": "길어야 한 스텝의 {share}",
    "{percent}%": "{percent}%",
    "search for the best window of each of {modules} modules over {snapshots} snapshots": (
        "스냅샷 {snapshots}개에서 모듈 {modules}개 각각의 가장 좋은 구간 찾기"
    ),
    "{share} of the evaluations, {time} of the time of evaluating every candidate as a whole model": (
        "모든 후보를 모델 전체로 평가할 때에 견주어 평가 횟수의 {share}, 시간의 {time}"
    ),
    "assembly of `full` from two snapshots, every module a mean of both": (
        "스냅샷 두 개로 `full` 조립, 모든 모듈은 둘의 평균"
    ),
    "{size} of memory, {time}": "메모리 {size}, {time}",
    "mergekit-pytorch {size}, {time}": "mergekit-pytorch는 {size}, {time}",
    "near-duplicates in {count} texts": "텍스트 {count}개에서 근사 중복 찾기",
    "{time}, {ratio} times as fast as rapidfuzz's `cdist`, the same found": (
        "{time}, rapidfuzz `cdist`의 {ratio}배 속도이며 찾은 것은 같음"
    ),
    "{count} records in {time}": "레코드 {count}개에 {time}",
    # What the study found.
    "`{command}` on {cores} CPU core{s} (sweep {sweep} min, training {training} min), {read} real records: {train} to "
    "train, {select} to select, {confirm} to confirm, {test} to test. The test split of seed {seed}, {level} % "
    "intervals:": (
        "`{command}`, CPU 코어 {cores}개(스윕 {sweep}분, 학습 {training}분), 실제 레코드 {read}개: 학습에 {train}개, "
        "선택에 {select}개, 확인에 {confirm}개, 테스트에 {test}개. 시드 {seed}의 테스트 분할, {level} % 신뢰구간:"
    ),
    "`{command}` (before the features held what words say) on {cores} CPU core{s} (sweep {sweep} min, training "
    "{training} min), {read} real records: {train} to train, {select} to select, {confirm} to confirm, {test} to test. "
    "The test split of seed {seed}, {level} % intervals:": (
        "`{command}`(특징에 단어의 예측이 들어가기 전), CPU 코어 {cores}개(스윕 {sweep}분, 학습 {training}분), 실제 "
        "레코드 {read}개: 학습에 {train}개, 선택에 {select}개, 확인에 {confirm}개, 테스트에 {test}개. 시드 {seed}의 "
        "테스트 분할, {level} % 신뢰구간:"
    ),
    "model": "모델",
    "emotion KL": "감정 KL",
    "accuracy": "정확도",
    "with ties": "동점 포함",
    "regret R2": "후회 R2",
    "Bentham R2": "Bentham R2",
    "SURD R2": "SURD R2",
    "No baseline does better in any of the tasks. {rest}": "어느 과제에서도 더 나은 기준 모델이 없습니다. {rest}",
    "Better than the recommended model: {which}. {rest}": "권장된 모델보다 나은 것: {which}. {rest}",
    "At the end of {epochs} epochs the validation loss is {each} above its lowest (seeds {first} to {last}). {rest}": (
        "{epochs} 에포크가 끝났을 때 검증 손실은 가장 낮았던 값보다 {each} 높습니다(시드 {first}~{last}). {rest}"
    ),
    "No evidence of gain of the crossover over the best single snapshot in any of {seeds} seeds (on unseen records "
    "{each}). {rest}": (
        "교차 결합이 가장 좋은 단일 스냅샷보다 낫다는 증거는 시드 {seeds}개 가운데 어디에서도 나오지 않았습니다"
        "(본 적 없는 레코드에서 {each}). {rest}"
    ),
    "Evidence of gain of the crossover over the best single snapshot in {some} of {seeds} seeds (on unseen records "
    "{each}). {rest}": (
        "교차 결합이 가장 좋은 단일 스냅샷보다 낫다는 증거가 시드 {seeds}개 가운데 {some}개에서 나왔습니다(본 적 없는 "
        "레코드에서 {each}). {rest}"
    ),
    "[All of it](docs/study.md).": "[전체 결과](docs/study.md).",
}
"""Korean by English, figures and names between braces."""


def sentence(english: str) -> str:
    """The Korean of a sentence or of a table's cell.

    Raises:
        ValueError: there is no pattern for it.
    """
    found = _by_pattern(english)
    parts = english.split("; ")
    if found is None and len(parts) > 1:
        return "; ".join(sentence(part) for part in parts)
    if found is None:
        raise ValueError(f"no Korean in benchmarks/readme_korean.py for: {english}")
    return found


def _by_pattern(english: str) -> str | None:
    for pattern, korean in SENTENCES.items():
        # Only lists hold semicolons; between figures they divide sentences.
        named = re.sub(r"\\{(which|rest)\\}", r"(?P<\1>.*)", re.escape(pattern))
        given = re.fullmatch(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^;]*?)", named), english)
        if given:
            figures = given.groupdict()
            if "rest" in figures:
                figures["rest"] = sentence(figures["rest"])
            return korean.format_map(figures)
    return None


def korean(name: str, block: str) -> str:
    """A generated part of README.md, as README.ko.md has it: the plan as it is printed, all else in Korean."""
    if name == "plan":
        return block
    return "\n".join(_line(name, line) for line in block.split("\n"))


def _line(name: str, line: str) -> str:
    if not line or line.startswith(("<!--", "|---")):
        return line
    if not line.startswith("|"):
        return sentence(line)
    cells = line.strip("| ").split(" | ")
    # The study's rows are names as programs print them and figures.
    if name == "measured" or cells[0] == "model":
        cells = [cell if re.fullmatch("`[^`]*`", cell) else sentence(cell) for cell in cells]
    return f"| {' | '.join(cells)} |"
