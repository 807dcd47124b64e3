import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semievol.answers import (
    Target,
    closed_set,
    default_metric,
    normal_form,
    normalize_target,
    parse_answer,
    rouge_l,
    score_answer,
    token_f1,
)
from semievol.config import TaskConfig
from semievol.errors import DataError
from semievol.prompts import PromptBuilder
from semievol.types import Example, TaskFacts, choice_letter

OPTIONS = ("positive", "negative", "neutral", "Vitamin A")
LABELS = ("card payment", "card payment fee charged", "top_up-failed", "Refund not showing up")
CHOICE = TaskConfig(type="choice")
LABEL = TaskConfig(type="label")
NUMBER = TaskConfig(type="number")
SPAN = TaskConfig(type="span")
TEXT = TaskConfig(type="text")
ROW = Example(id="r1", question="Which?", choices=OPTIONS)
OPEN = Example(id="r1", question="Which?")
FACTS = TaskFacts()
LABEL_FACTS = TaskFacts(labels=LABELS)
COMPLETE_CHOICE, COMPLETE_LABEL, COMPLETE_NUMBER, COMPLETE_SPAN = (
    PromptBuilder(task, FACTS) for task in (CHOICE, LABEL, NUMBER, SPAN)
)


def row(*choices: str) -> Example:
    return Example(id="r1", question="Which?", choices=choices)


def parse_choice(text: str, example: Example = ROW) -> str | None:
    return parse_answer(text, example, CHOICE, FACTS)


def parse_label(text: str, labels: tuple[str, ...] = LABELS) -> str | None:
    return parse_answer(text, OPEN, LABEL, TaskFacts(labels=labels))


def parse_number(text: str) -> str | None:
    return parse_answer(text, OPEN, NUMBER, FACTS)


def parse_span(text: str) -> str | None:
    return parse_answer(text, OPEN, SPAN, FACTS)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: B", "B"),
        ("Answer: B.", "B"),
        ("**Answer: B**", "B"),
        ("**Answer:** B", "B"),
        ("**Answer**: **B**", "B"),
        ("## Answer\n\nB", "B"),
        ("Answer:\nB", "B"),
        ("(b)", "B"),
        ("B) negative", "B"),
        ("b", "B"),
        ("a", "A"),
        ("answer : b", "B"),
        ("answer : a", "A"),
        ("answer : ( b ) negative", "B"),
        ("answer : b .", "B"),
        ("The answer is B", "B"),
        ("The answer is (C).", "C"),
        ("The correct answer is: C", "C"),
        ("The correct option is D.", "D"),
        ("The best choice is (B)", "B"),
        ("The answer to the question is B.", "B"),
        ("\\boxed{B}", "B"),
        ("So we get $\\boxed{\\text{B}}$.", "B"),
        ("Option C", "C"),
        ("option c", "C"),
        ("Choice (C)", "C"),
        ("negative", "B"),
        ("Negative.", "B"),
        ("Answer: negative", "B"),
        ("answer : vitamin a", "D"),
        ("The answer is vitamin A.", "D"),
        ("The sentiment of this headline is negative.", "B"),
        ("Answer: D) Vitamin A", "D"),
        ("A. positive", "A"),
        ("Answer: B, because A is wrong.", "B"),
        ("Answer: B. Note that A and C are wrong.", "B"),
        ("Answer: A because the profit rose", "A"),
        ("A is the correct option here", "A"),
        ("The answer is not A, but B.", "B"),
        ("The answer is not A; the answer is C.", "C"),
        ("It can't be A, so it must be C.", "C"),
        ("The answer is **B** and not C.", "B"),
        ("The answer is most likely B", "B"),
        ("I think it is C.", "C"),
        ("I choose B", "B"),
        ("B is correct, while A and C are not.", "B"),
        ("First I thought the answer is A.\nBut profits fell, so the answer is B.", "B"),
        ("Answer: A\nWait.\nAnswer: B", "B"),
        ("Answer: B\nThis answer is well supported by the text.", "B"),
        ("B\n\nExplanation: profits fell.", "B"),
        ("Profits fell by a third.\n\nB", "B"),
        ("<think>Maybe the answer is A.</think>Answer: C", "C"),
        ("Maybe the answer is A.</think>\n\nC", "C"),
        ("\uff21nswer\uff1a\uff22", "B"),
        ("Answer: \uff08\uff23\uff09", "C"),
        ("Answer:\u200b B", "B"),
        ("Answer: \u24b7", "B"),
        ('{"answer": "B"}', "B"),
        ("<answer>C</answer>", "C"),
        ("Answer => B", "B"),
        ("`B`", "B"),
        ("Answer: B\n\nQuestion: What next?\nA. x\nB. y\nAnswer: C", "B"),
        ("answer : b question : what next ? answer : c", "B"),
    ],
)
def test_parse_answer_reads_choice(text: str, letter: str) -> None:
    assert parse_choice(text) == letter


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n ",
        "Answer:",
        "Answer: E",
        "F",
        "Answer: (Z).",
        "Answer: A or B",
        "Answer: A, B",
        "A and C",
        "a or b",
        "Answer: A/B",
        "It is a tie.",
        "I am not sure about a thing like this",
        "I would say that a company grew",
        "The answer is not B",
        "The answer is not negative.",
        "Both positive and negative words occur.",
        "A. positive\nB. negative\nC. neutral\nD. Vitamin A",
        "<think>Answer: B",
        "<think>Answer: B</think>",
        "???",
        "Answer: 42",
        "Answer: I do not know",
        "Answer: A common cause",
        "Answer: neither A nor B",
    ],
)
def test_parse_answer_gives_none_where_no_choice_is_made(text: str) -> None:
    assert parse_choice(text) is None


def test_parse_answer_prefers_exact_option_text_over_leading_letter() -> None:
    assert parse_choice("C. difficile", row("E. coli", "C. difficile")) == "B"


def test_parse_answer_reads_letter_before_option_text_of_one_letter() -> None:
    assert parse_choice("Answer: B", row("B", "A")) == "B"


def test_parse_answer_takes_longest_option_text() -> None:
    assert parse_choice("It was a heart attack.", row("attack", "heart attack", "heart")) == "B"


def test_parse_answer_refuses_option_text_that_two_options_share() -> None:
    assert parse_choice("yes", row("yes", "yes", "no")) is None


def test_parse_answer_reads_letters_beyond_z() -> None:
    example = row(*(f"option number {i}" for i in range(30)))
    assert [parse_choice(f"Answer: {x}", example) for x in ("AA", "ad", "Z", "AE")] == ["AA", "AD", "Z", None]


def test_parse_answer_does_not_take_pronoun_for_ninth_option() -> None:
    example = row(*(f"thing {i}" for i in range(10)))
    assert parse_choice("I think so", example) is None
    assert parse_choice("I, for one, agree", example) is None
    assert parse_choice("Answer: I", example) == "I"


def test_parse_answer_reads_options_in_chinese_text() -> None:
    assert parse_choice("\u7b54\u6848\u662f\u6b63\u9762\u7684", row("\u6b63\u9762", "\u8d1f\u9762")) == "A"


def test_parse_answer_uses_words_of_completion_template_as_marker() -> None:
    task = TaskConfig(type="choice", completion_template="Verdict => [{{ answer }}] done")
    assert parse_answer("A is a trap. verdict = > [ b ] done", ROW, task, FACTS) == "B"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("card payment", "card payment"),
        ("Card Payment.", "card payment"),
        ('"card_payment"', "card payment"),
        ("Answer: card payment fee charged", "card payment fee charged"),
        ("answer : top up - failed", "top_up-failed"),
        ("top-up failed", "top_up-failed"),
        ("**Answer:** Refund not showing up", "Refund not showing up"),
        ("This is about a card payment fee charged twice.", "card payment fee charged"),
        ("The label is card payment, clearly.", "card payment"),
        ("Card payment\n\nThe refund was never late; a card payment fee charged here is unlikely.", "card payment"),
        ("It might be a card payment.\nAnswer: top up failed", "top_up-failed"),
        ("Answer: card payment\n\nQuestion: x\nAnswer: top up failed", "card payment"),
        ("<think>top up failed</think> card payment", "card payment"),
    ],
)
def test_parse_answer_reads_label(text: str, label: str) -> None:
    assert parse_label(text) == label


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Answer:",
        "loan",
        "card payment or top up failed",
        "Answer: card payment, top up failed",
        "payment",
        "not card payment",
    ],
)
def test_parse_answer_gives_none_where_no_label_is_named(text: str) -> None:
    assert parse_label(text) is None


def test_parse_answer_tells_labels_apart_that_differ_in_punctuation() -> None:
    labels = ("c", "c++", "c#", "-1", "1")
    assert [parse_label(f"Answer: {label}", labels) for label in labels] == list(labels)


def test_parse_answer_takes_label_that_leads_a_sentence() -> None:
    assert parse_label("Answer: Yes, because no one objects", ("yes", "no")) == "yes"
    assert parse_label("No. There is no yes.", ("yes", "no")) == "no"
    assert parse_label("Answer: yes, or no", ("yes", "no")) is None


def test_parse_answer_keeps_negated_label_apart() -> None:
    labels = ("entailment", "not_entailment")
    assert parse_label("It is not entailment", labels) == "not_entailment"


def test_parse_answer_reads_label_that_holds_a_marker() -> None:
    assert parse_label("Answer: answer is unclear", ("unclear", "answer is unclear")) == "answer is unclear"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", "42"),
        ("Answer: 42", "42"),
        ("42.", "42"),
        ("Answer: $1,234.50", "1234.5"),
        ("1234.5", "1234.5"),
        ("answer : $ 1 , 234 . 50", "1234.5"),
        ("12 %", "12"),
        ("12%", "12"),
        ("1.2e3", "1200"),
        ("1.2 \u00d7 10^3", "1200"),
        ("$1.2 \\times 10^{3}$", "1200"),
        ("5 \u00d7 10\u00b3", "5000"),
        ("-5", "-5"),
        ("\u22125", "-5"),
        ("answer : - 5", "-5"),
        ("-$5", "-5"),
        ("+5", "5"),
        ("(5)", "5"),
        ("1/2", "0.5"),
        ("1 / 3", "1/3"),
        ("1 1/2", "1.5"),
        ("3\u00bd", "3.5"),
        ("\\boxed{42}", "42"),
        ("\\boxed{\\frac{1}{2}}", "0.5"),
        ("#### 42", "42"),
        ("6 * 7 = 42\n#### 42", "42"),
        ("42 apples", "42"),
        ("5 kg of CO2", "5"),
        ("25 m\u00b2", "25"),
        ("\u0664\u0662", "42"),
        ("\uff14\uff12", "42"),
        ("1\u202f234", "1234"),
        ("1,23,456", "123456"),
        (".5", "0.5"),
        ("0.50", "0.5"),
        ("-0.0", "0"),
        ("007", "7"),
        ("100", "100"),
        ("The answer is 42 because 6 * 7 is 42 and not 43.", "42"),
        ("Answer: 6 * 7 = 42", "42"),
        ("Answer: x = 42", "42"),
        ("There were 3 boxes with 4 pens, so 12 pens", "12"),
        ("Answer: 3\nNo.\nAnswer: 4", "4"),
        ("Answer: 42\nI hope this answer is helpful.", "42"),
        ("**Answer:** 42", "42"),
        ("Answer:\n- 42", "42"),
        ("<think>7</think> 42", "42"),
        ("Answer: 42\n\nQuestion: 1 + 1?\nAnswer: 2", "42"),
        ("USD500", "500"),
    ],
)
def test_parse_answer_reads_number(text: str, number: str) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "Answer:",
        "five",
        "3,14",
        "1/0",
        "1e999999999",
        "9" * 101,
        "Answer: 3 or 5",
        "3-5",
        "Answer: 4, 5",
        "10^3",
        "12:30",
        "1.2.3",
        "x5",
        "nan",
        "inf",
    ],
)
def test_parse_answer_gives_none_where_no_number_is_given(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("Answer: Paris", "Paris"),
        ("Answer: Paris.", "Paris"),
        ("The answer is **Paris**.", "Paris"),
        ('**Answer:** "the Eiffel Tower"\nIt is in France.', "the Eiffel Tower"),
        ("Paris\nbecause ...", "Paris"),
        ("\\boxed{\\text{Paris}}", "Paris"),
        ("Answer: U.S.", "U.S."),
        ("Answer:\n\nParis", "Paris"),
        ("Answer: Paris\n\nQuestion: Capital of Spain?\nAnswer: Madrid", "Paris"),
    ],
)
def test_parse_answer_reads_span(text: str, span: str) -> None:
    assert parse_span(text) == span


def test_parse_answer_gives_none_for_empty_span() -> None:
    assert parse_span("Answer:") is None
    assert parse_span('""') is None


def test_parse_answer_keeps_whole_text() -> None:
    assert parse_answer("<think>hm</think>\n Dear all,\n\nyes. ", OPEN, TEXT, FACTS) == "Dear all,\n\nyes."
    assert parse_answer(" \n", OPEN, TEXT, FACTS) is None


def test_parse_answer_takes_template_words_off_text() -> None:
    task = TaskConfig(type="text", completion_template="Reply: {{ answer }}")
    assert parse_answer("Reply: two\nlines", OPEN, task, FACTS) == "two\nlines"


@pytest.mark.parametrize("task", [CHOICE, LABEL, NUMBER, SPAN, TEXT], ids=lambda task: task.type)
@settings(max_examples=100, deadline=None)
@given(
    text=st.text()
    | st.lists(
        st.sampled_from(["answer", ":", " is ", "B", "a", "\\boxed{", "}", "1", "/", ".", ",", "e", "\n", "**", "not "])
    ).map("".join)
)
def test_parse_answer_never_raises_and_stays_in_its_set(task: TaskConfig, text: str) -> None:
    answer = parse_answer(text, ROW, task, LABEL_FACTS)
    assert answer is None or answer.strip()
    if answer is not None and task.type in ("choice", "label"):
        assert answer in closed_set(ROW, task, LABEL_FACTS)


@given(options=st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=40), data=st.data())
@settings(max_examples=100, deadline=None)
def test_parse_answer_reads_back_every_letter(options: list[str], data: st.DataObject) -> None:
    example = row(*options)
    letter = choice_letter(data.draw(st.integers(0, len(options) - 1)))
    for completion in (COMPLETE_CHOICE.completion(letter, example), f"answer : {letter.lower()}", letter):
        assert parse_choice(completion, example) == letter


@given(
    labels=st.lists(
        st.text("abAB 1-_+?.\u00e9\u4f60\U0001f44d", min_size=1, max_size=8).map(str.strip).filter(bool),
        min_size=1,
        max_size=8,
        unique=True,
    )
)
@settings(max_examples=100, deadline=None)
def test_parse_answer_reads_back_every_label(labels: list[str]) -> None:
    facts = TaskFacts(labels=tuple(labels))
    for label in labels:
        assert parse_answer(COMPLETE_LABEL.completion(label, OPEN), OPEN, LABEL, facts) == label


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6) | st.integers(-(10**30), 10**30) | st.fractions())
@settings(max_examples=100, deadline=None)
def test_parse_answer_reads_back_every_number(value: object) -> None:
    target = normalize_target(
        format(value, "f") if hasattr(value, "as_tuple") else str(value), OPEN, NUMBER, FACTS
    ).value
    assert parse_number(COMPLETE_NUMBER.completion(target, OPEN)) == target
    assert normal_form(target, NUMBER) == target


@given(st.text("abz .,'-\u00e9\u4f60", min_size=1))
@settings(max_examples=100, deadline=None)
def test_parse_answer_reads_back_every_span(span: str) -> None:
    parsed = parse_span(COMPLETE_SPAN.completion(span.strip(), OPEN))
    if parsed is None:
        assert not any(ch.isalpha() for ch in span)
    elif any(ch.isalpha() for ch in span):
        assert normal_form(parsed, SPAN) == normal_form(span, SPAN)


@pytest.mark.parametrize("task", [CHOICE, LABEL, NUMBER, SPAN, TEXT], ids=lambda task: task.type)
@settings(max_examples=100, deadline=None)
@given(answer=st.text())
def test_normal_form_is_idempotent_and_not_empty(task: TaskConfig, answer: str) -> None:
    form = normal_form(answer, task)
    assert normal_form(form, task) == form
    assert bool(form) == bool(answer.strip())


LONG_TEXTS = {
    "answers": "answer " * 14_000,
    "statements": "the answer is A or B " * 5_000,
    "digits": "1" * 100_000,
    "groups": "1," * 50_000,
    "fractions": "1/" * 50_000,
    "spaces": " " * 50_000 + "\n" * 50_000,
    "letters": "A " * 50_000,
    "brackets": "(" * 100_000,
    "boxes": "\\boxed{" * 14_000,
    "fracs": "\\frac{" * 16_000,
    "dashes": "- " * 50_000,
    "stars": "*" * 100_000,
    "options": "positive negative " * 5_500,
    "quotes": "\"'" * 50_000,
    "thinking": "<think>" * 14_000,
    "dots": "1." * 50_000,
    "long": "a" * 100_000,
}


@pytest.mark.parametrize("text", LONG_TEXTS.values(), ids=LONG_TEXTS.keys())
def test_parse_answer_takes_little_time_on_long_text(text: str) -> None:
    for task in (CHOICE, LABEL, NUMBER, SPAN, TEXT):
        start = time.process_time()
        parse_answer(text, ROW, task, LABEL_FACTS)
        assert time.process_time() - start < 1.5, task.type


def test_closed_set_is_letters_labels_or_nothing() -> None:
    assert closed_set(row("x", "y"), CHOICE, FACTS) == ("A", "B")
    assert closed_set(OPEN, LABEL, LABEL_FACTS) == LABELS
    assert closed_set(OPEN, NUMBER, FACTS) == ()


@pytest.mark.parametrize(
    ("a", "b", "task"),
    [
        ("1,234.50", "1234.5", NUMBER),
        ("2/4", "0.5", NUMBER),
        ("The Eiffel Tower!", "eiffel  tower", SPAN),
        ("Well-known", "wellknown", SPAN),
        ("b", "B", CHOICE),
        ("Two\n lines", "two lines", TEXT),
    ],
)
def test_normal_form_is_shared_by_answers_that_agree(a: str, b: str, task: TaskConfig) -> None:
    assert normal_form(a, task) == normal_form(b, task)


def test_normal_form_keeps_different_answers_of_punctuation_apart() -> None:
    assert normal_form("!", SPAN) != normal_form("?", SPAN)
    assert normal_form("the", SPAN) != normal_form("a", SPAN)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("B", Target("B")),
        (" b ", Target("B")),
        ("(b)", Target("B")),
        ("B.", Target("B")),
        ("B) negative", Target("B")),
        ("Negative", Target("B")),
        ("vitamin a", Target("D")),
        ("3", Target("C", "digit answer '3' read as C")),
    ],
)
def test_normalize_target_reads_choice(raw: str, expected: Target) -> None:
    assert normalize_target(raw, ROW, CHOICE, FACTS) == expected


@pytest.mark.parametrize("raw", ["", "E", "0", "5", "-1", "1.0", "good", "B) positive", "A, B"])
def test_normalize_target_refuses_what_is_no_option(raw: str) -> None:
    with pytest.raises(DataError, match="row r1"):
        normalize_target(raw, ROW, CHOICE, FACTS)


def test_normalize_target_reads_digit_as_option_text_where_options_are_digits() -> None:
    assert normalize_target("3", row("1", "3", "5"), CHOICE, FACTS) == Target("B")
    with pytest.raises(DataError, match="'2' is not one of the 3 options"):
        normalize_target("2", row("1", "3", "5"), CHOICE, FACTS)


def test_normalize_target_reports_letter_that_is_also_another_option() -> None:
    assert (
        normalize_target("A", row("O", "A"), CHOICE, FACTS).repaired
        == "target 'A' is also the text of option B; read as the letter"
    )


def test_normalize_target_reads_label_and_names_nearest_for_unknown_one() -> None:
    assert normalize_target("Card-Payment", OPEN, LABEL, LABEL_FACTS) == Target("card payment")
    with pytest.raises(DataError, match="did you mean 'card payment'"):
        normalize_target("card paymnt", OPEN, LABEL, LABEL_FACTS)


@pytest.mark.parametrize(
    ("raw", "value"),
    [("$1,234.50", "1234.5"), ("14.1%", "14.1"), ("so 6*7=42\n#### 42", "42"), ("-1/3", "-1/3"), ("1e3", "1000")],
)
def test_normalize_target_reads_number(raw: str, value: str) -> None:
    assert normalize_target(raw, OPEN, NUMBER, FACTS) == Target(value)


@pytest.mark.parametrize("raw", ["", "many", "3 apples", "1 2", "3,14", "1e9999"])
def test_normalize_target_refuses_what_is_no_number(raw: str) -> None:
    with pytest.raises(DataError, match="row r1"):
        normalize_target(raw, OPEN, NUMBER, FACTS)


def test_normalize_target_keeps_span_readable() -> None:
    assert normalize_target(" The U.S. ", OPEN, SPAN, FACTS) == Target("The U.S.")


@pytest.mark.parametrize(("kind", "metric"), [("choice", "accuracy"), ("span", "exact_match"), ("text", "rouge_l")])
def test_default_metric_follows_answer_type(kind: str, metric: str) -> None:
    assert default_metric(TaskConfig.model_validate({"type": kind})) == metric
    assert default_metric(TaskConfig.model_validate({"type": kind, "metric": "token_f1"})) == "token_f1"


@pytest.mark.parametrize(
    ("answer", "target", "task", "score"),
    [
        (None, "B", CHOICE, 0.0),
        ("B", "B", CHOICE, 1.0),
        ("A", "B", CHOICE, 0.0),
        ("0.3333333", "1/3", NUMBER, 1.0),
        ("0.333", "1/3", NUMBER, 0.0),
        ("0", "0", NUMBER, 1.0),
        ("0.12", "12", NUMBER, 0.0),
        ("the Eiffel tower", "Eiffel Tower", SPAN, 1.0),
        ("tower", "Eiffel Tower", SPAN, 0.0),
        ("tower", "Eiffel Tower", TaskConfig(type="span", metric="token_f1"), 2 / 3),
        ("the cat sat", "the cat ran away", TEXT, 4 / 7),
    ],
)
def test_score_answer_compares_with_target(answer: str | None, target: str, task: TaskConfig, score: float) -> None:
    assert score_answer(answer, target, ROW, task) == pytest.approx(score)


def test_score_answer_refuses_target_that_is_no_number() -> None:
    with pytest.raises(DataError, match="'many' is not a number"):
        score_answer("3", "many", OPEN, NUMBER)


def test_token_f1_counts_repeated_words() -> None:
    assert token_f1("x x y", "x y y") == pytest.approx(2 / 3)
    assert token_f1("", "x") == 0.0


def test_rouge_l_keeps_word_order_and_reads_chinese_by_character() -> None:
    assert rouge_l("b a", "a b") == pytest.approx(0.5)
    assert rouge_l("police killed the gunman", "police kill the gunman") == pytest.approx(0.75)
    assert rouge_l("\u4f60\u597d", "\u4f60\u4eec\u597d") == pytest.approx(0.8)
    assert rouge_l("!", "?") == 0.0


@given(st.lists(st.sampled_from("abc"), max_size=8), st.lists(st.sampled_from("abc"), max_size=8))
@settings(max_examples=100, deadline=None)
def test_rouge_l_agrees_with_plain_dynamic_programme(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    expected = 2 * table[-1][-1] / (len(a) + len(b)) if a and b else float(a == b)
    assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(expected)
