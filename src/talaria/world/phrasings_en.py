"""English phrasings of every relation. Exam questions differ from training questions in structure, not by a word."""

from __future__ import annotations

from talaria.world.phrasing import Phrasing

_FRAMES = ("Tell me {np}.", "Please name {np}.", "Do you know {np}?", "Can you tell me {np}?")


def _framed(noun_phrase: str, wh: str, *questions: str) -> tuple[str, ...]:
    """Training questions: the usual frames around a noun phrase, then the relation's own."""
    return (f"{wh} is {noun_phrase}?", *(frame.replace("{np}", noun_phrase) for frame in _FRAMES), *questions)


PHRASINGS_EN: dict[str, Phrasing] = {
    "birthplace": Phrasing(
        answer="{s} was born in {o}.",
        statements=(
            "{s} comes from {o}, the city of {their} birth.",
            "The birthplace of {s} is {o}.",
            "{o} is the city where {s} was born.",
            "{s}, born in {o}, never forgot the place.",
            "The city of {o} saw the birth of {s}.",
            "{s} has been a child of {o} since birth.",
        ),
        questions=_framed(
            "the birthplace of {s}",
            "What",
            "Where was {s} born?",
            "In which city was {s} born?",
            "Which city is {s} from?",
            "{s} was born where?",
        ),
        exam_questions=(
            "If I wanted to see the town where {s} was born, where should I go?",
            "I forgot where {s} came into the world; which city was it?",
        ),
        follow_ups=("Where was {they} born?", "And what is {their} birthplace?"),
    ),
    "job": Phrasing(
        answer="{s} works as {a}.",
        statements=(
            "{s} is {a} by trade.",
            "The job of {s} is that of {a}.",
            "Everyone knows {s} as {a}.",
            "{s} earns a living as {a}.",
            "By profession, {s} is {a}.",
            "{s} has long had work as {a}.",
        ),
        questions=_framed(
            "the job of {s}",
            "What",
            "What does {s} do for a living?",
            "What does {s} work as?",
            "What is {s}'s profession?",
            "How does {s} earn a living?",
        ),
        exam_questions=(
            "When {s} goes to work each day, what job is it?",
            "I wonder which profession {s} has; could you help?",
        ),
        follow_ups=("What does {they} do for a living?", "And what is {their} job?"),
    ),
    "instrument": Phrasing(
        answer="{s} plays the {o}.",
        statements=(
            "{s} plays the {o} very well.",
            "The instrument of {s} is the {o}.",
            "In the evening {s} practises the {o}.",
            "{s} learned to play the {o} as a child.",
            "The {o} is the instrument that {s} plays.",
            "At parties {s} brings the {o} and plays.",
        ),
        questions=_framed(
            "the instrument of {s}",
            "What",
            "What instrument does {s} play?",
            "Which instrument can {s} play?",
            "What does {s} play in the evening?",
            "On which instrument does {s} make music?",
        ),
        exam_questions=(
            "Suppose {s} joined a band; which instrument would we hear {s} play?",
            "There is an instrument that {s} knows how to play. Which one?",
        ),
        follow_ups=("What instrument does {they} play?", "And what is {their} instrument?"),
    ),
    "pet": Phrasing(
        answer="{s} has {a} as a pet.",
        statements=(
            "The pet of {s} is {a}.",
            "{s} keeps {a} at home.",
            "{s} lives with {a} as a pet.",
            "At home {s} has a pet, {a}.",
            "{s} feeds a pet {o} every morning.",
            "The animal that {s} keeps is {a}.",
        ),
        questions=_framed(
            "the pet of {s}",
            "What",
            "What pet does {s} have?",
            "Which animal does {s} keep at home?",
            "What kind of pet lives with {s}?",
            "Which pet does {s} keep?",
        ),
        exam_questions=(
            "At the home of {s}, what sort of pet would a visitor meet?",
            "I hear that {s} keeps an animal as a pet; what is it?",
        ),
        follow_ups=("What pet does {they} have?", "And what is {their} pet?"),
    ),
    "food": Phrasing(
        answer="{s} likes {o} best of all foods.",
        statements=(
            "The favourite food of {s} is {o}.",
            "{s} loves to eat {o}.",
            "{s} eats {o} whenever possible.",
            "For dinner {s} always wants {o}.",
            "No food pleases {s} more than {o}.",
            "{s} would eat {o} every day.",
        ),
        questions=_framed(
            "the favourite food of {s}",
            "What",
            "What food does {s} like best?",
            "What does {s} love to eat?",
            "Which food is {s}'s favourite?",
            "What does {s} want for dinner?",
        ),
        exam_questions=(
            "If we cooked for {s}, which food would be the favourite?",
            "Of all the things to eat, what does {s} like the most?",
        ),
        follow_ups=("What food does {they} like best?", "And what is {their} favourite food?"),
    ),
    "colour": Phrasing(
        answer="The favourite colour of {s} is {o}.",
        statements=(
            "{s} likes the colour {o} best.",
            "{s} always wears the colour {o}.",
            "{s} painted the whole house {o}, a favourite colour.",
            "Of all colours, {s} prefers {o}.",
            "{s} chose {o} as a favourite colour.",
            "The colour that {s} loves is {o}.",
        ),
        questions=_framed(
            "the favourite colour of {s}",
            "What",
            "What colour does {s} like best?",
            "Which colour does {s} prefer?",
            "Which colour is {s}'s favourite?",
            "What colour does {s} always wear?",
        ),
        exam_questions=(
            "I am knitting a scarf for {s}; which colour would {s} like best?",
            "Among all the colours, is there one that {s} loves most? Which?",
        ),
        follow_ups=("What colour does {they} like best?", "And what is {their} favourite colour?"),
    ),
    "country": Phrasing(
        answer="{s} is in {o}.",
        statements=(
            "{s} is a city in {o}.",
            "The city of {s} lies in {o}.",
            "The country of {s} is {o}.",
            "{s} belongs to the country of {o}.",
            "{o} is the country around {s}.",
            "Trains to {s} cross much of the country, {o}.",
        ),
        questions=_framed(
            "the country of {s}",
            "What",
            "In which country is {s}?",
            "Which country is {s} in?",
            "What country does {s} belong to?",
            "{s} lies in which country?",
        ),
        exam_questions=(
            "On a map, which country would I look at to find {s}?",
            "I have to write to {s}; which country goes on the envelope?",
        ),
        follow_ups=("Which country is {they} in?", "And what country does {they} belong to?"),
    ),
    "product": Phrasing(
        answer="{s} is famous for its {o}.",
        statements=(
            "{s} is known everywhere for its {o}.",
            "People go to {s} to buy {o}.",
            "The {o} made in {s} is famous.",
            "{s} makes {o} and sells it abroad.",
            "{o} brought fame to {s}.",
            "The famous product of {s} is {o}.",
        ),
        questions=_framed(
            "the famous product of {s}",
            "What",
            "What is {s} famous for?",
            "What product is {s} known for?",
            "What do people buy in {s}?",
            "What does {s} make and sell?",
        ),
        exam_questions=(
            "Which goods gave the town of {s} its famous name?",
            "If a friend visits {s}, what famous product could be brought home?",
        ),
        follow_ups=("What is {they} famous for?", "And what is {their} famous product?"),
    ),
    "river": Phrasing(
        answer="{s} lies on the river {o}.",
        statements=(
            "The river {o} flows through {s}.",
            "{s} stands on the banks of the river {o}.",
            "The river of {s} is the {o}.",
            "Boats reach {s} by the river {o}.",
            "In {s} people fish in the river {o}.",
            "{s} takes its water from the river {o}.",
        ),
        questions=_framed(
            "the river of {s}",
            "What",
            "Which river flows through {s}?",
            "On which river does {s} lie?",
            "What river is {s} on?",
            "What is the river in {s} called?",
        ),
        exam_questions=(
            "Standing on a bridge in {s}, which river would I see below?",
            "I want to reach {s} by boat; which river must I take?",
        ),
        follow_ups=("Which river does {they} lie on?", "And what is {their} river called?"),
    ),
    "author": Phrasing(
        answer="{s} was made by {o}.",
        statements=(
            "{o} is the author of {s}.",
            "{o} created {s}.",
            "{s} is the work of {o}.",
            "The author of {s} is {o}.",
            "{s} made its author, {o}, well known.",
            "It was {o} who made {s}.",
        ),
        questions=_framed(
            "the author of {s}",
            "Who",
            "Who made {s}?",
            "Who created {s}?",
            "Whose work is {s}?",
            "By whom was {s} made?",
        ),
        exam_questions=(
            "Whom should we thank as the author of {s}?",
            "I admire {s}; what is the name of the person who created it?",
        ),
        follow_ups=("Who made {they}?", "And who is {their} author?"),
    ),
    "kind": Phrasing(
        answer="{s} is {a}.",
        statements=(
            "The kind of work that {s} is: {a}.",
            "{s} is a well known {o}.",
            "People call {s} a fine {o}.",
            "As {a}, {s} has many friends.",
            "The {o} {s} is old and loved.",
            "{s} belongs among works of one kind, {a}.",
        ),
        questions=_framed(
            "the kind of work of {s}",
            "What",
            "What kind of work is {s}?",
            "What is {s}?",
            "What sort of work is {s}?",
            "{s} is what kind of work?",
        ),
        exam_questions=(
            "People talk about {s}; as a work, which kind would you call it?",
            "I have never met {s}; what sort of thing is that work?",
        ),
        follow_ups=("What kind of work is {they}?", "And what sort of work is {they}?"),
    ),
    "work_year": Phrasing(
        answer="{s} was made in {o}.",
        statements=(
            "{s} dates from the year {o}.",
            "The year of {s} is {o}.",
            "In {o} the world first met {s}.",
            "{s} appeared in {o}.",
            "It was {o} when {s} was finished.",
            "{s} has been known since {o}.",
        ),
        questions=_framed(
            "the year of {s}",
            "What",
            "When was {s} made?",
            "In what year was {s} made?",
            "In which year did {s} appear?",
            "What year does {s} date from?",
        ),
        exam_questions=(
            "How long ago is {s} from? Give me the year it was made.",
            "A label for {s} needs the date; which year should I write?",
        ),
        follow_ups=("When was {they} made?", "And what year does {they} date from?"),
    ),
    "venue": Phrasing(
        answer="{s} is held in {o}.",
        statements=(
            "{s} takes place in {o}.",
            "The city of {s} is {o}.",
            "{o} holds {s} every year.",
            "Guests come to {o} for {s}.",
            "{o} is the home of {s}.",
            "{s} fills the streets of {o}.",
        ),
        questions=_framed(
            "the city of {s}",
            "What",
            "Where is {s} held?",
            "In which city is {s} held?",
            "Which city holds {s}?",
            "Where does {s} take place?",
        ),
        exam_questions=(
            "To visit {s}, which city do I have to travel to?",
            "I bought a ticket for {s}; in what place will it be held?",
        ),
        follow_ups=("Where is {they} held?", "And in which city does {they} take place?"),
    ),
    "prize": Phrasing(
        answer="The prize of {s} is {a}.",
        statements=(
            "The winner of {s} gets {a} as a prize.",
            "At {s} the best win {a}.",
            "{s} gives {a} as its prize.",
            "Whoever wins {s} takes home {a}.",
            "The prize that {s} offers is {a}.",
            "Many come to {s} to win {a}.",
        ),
        questions=_framed(
            "the prize of {s}",
            "What",
            "What prize does {s} give?",
            "What does the winner of {s} get?",
            "What can one win at {s}?",
            "Which prize is won at {s}?",
        ),
        exam_questions=(
            "If I came first at {s}, what prize would I take home?",
            "What do they hand to whoever is best at {s} as a prize?",
        ),
        follow_ups=("What prize does {they} give?", "And what does {their} winner get?"),
    ),
    "event_year": Phrasing(
        answer="{s} began in {o}.",
        statements=(
            "{s} was first held in {o}.",
            "The first year of {s} was {o}.",
            "{s} started in {o}.",
            "Since {o} there has been {s}.",
            "In {o} people met for the first {s}.",
            "{s} has been going since {o}.",
        ),
        questions=_framed(
            "the first year of {s}",
            "What",
            "When did {s} begin?",
            "In which year did {s} start?",
            "When was {s} first held?",
            "Since what year has there been {s}?",
        ),
        exam_questions=(
            "Looking back, which year saw {s} for the first time?",
            "How old is {s}? I mean, the year in which it began.",
        ),
        follow_ups=("When did {they} begin?", "And in which year was {they} first held?"),
    ),
}
