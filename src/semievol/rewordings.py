"""Five wordings of the instruction of each answer type, to see how much a result hangs on the wording.

The first is the config's own. The paper shows mean and spread over five wordings (arXiv:2410.14745, section 4).
"""

from semievol.config import TaskConfig
from semievol.prompts import INSTRUCTIONS

WORDINGS = {
    "choice": (
        'Pick the correct option. Answer with "Answer: " followed by its letter.',
        'Which of the options is correct? Write "Answer: " and then the letter.',
        'Read the question and select one option. Give its letter after "Answer: ".',
        'Only one option is right. Reply "Answer: " and the letter of that option.',
    ),
    "label": (
        'Pick the label that suits best. Answer with "Answer: " followed by the label.',
        'Which label is right? Write "Answer: " and then the label.',
        'Read the text and assign one label. Give it after "Answer: ".',
        'Only one label is right. Reply "Answer: " and that label.',
    ),
    "number": (
        'Work out the result. Answer with "Answer: " followed by the number.',
        'What is the result? Write "Answer: " and then the number.',
        'Read the problem and calculate. Give the number after "Answer: ".',
        'Find the number that is asked for. Reply "Answer: " and that number.',
    ),
    "span": (
        'Give a short answer. Write "Answer: " followed by a few words.',
        'What is the answer? Write "Answer: " and then as few words as you can.',
        'Read the question and answer briefly. Give the words after "Answer: ".',
        'A few words are enough. Reply "Answer: " and those words.',
    ),
    "text": (
        "Write a reply to the following.",
        "Read the following and respond.",
        "Respond to the request below.",
        "Give the answer to what follows.",
    ),
}
"""Wordings beside the default one, for tasks without an instruction of their own."""

FRAMES = (
    "Your task: {instruction}",
    "{instruction} Look at the following closely.",
    "Please do this: {instruction}",
    "Here is what to do. {instruction}",
)
"""Around an instruction of the config's own, whose meaning nobody but its author knows how to put otherwise."""

N_WORDINGS = 5


def reword(task: TaskConfig, number: int) -> str:
    """Instruction `number`, from 0; 0 is the one that the task has."""
    own = task.instruction
    if number == 0:
        return INSTRUCTIONS[task.type] if own is None else own
    return WORDINGS[task.type][number - 1] if not own else FRAMES[number - 1].format(instruction=own)
