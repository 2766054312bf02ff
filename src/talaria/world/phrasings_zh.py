"""Chinese phrasings of every relation. Exam questions differ from training questions in structure, not by a word."""

from __future__ import annotations

from talaria.world.phrasing import Phrasing

_FRAMES = ("请问{np}是{wh}？", "请告诉我{np}。", "你知道{np}吗？", "我想知道{np}。")


def _framed(noun_phrase: str, wh: str, *questions: str) -> tuple[str, ...]:
    """Training questions: the usual frames around a noun phrase, then the relation's own."""
    frames = (frame.replace("{np}", noun_phrase).replace("{wh}", wh) for frame in _FRAMES)
    return (f"{noun_phrase}是{wh}？", *frames, *questions)


PHRASINGS_ZH: dict[str, Phrasing] = {
    "birthplace": Phrasing(
        answer="{s}出生在{o}。",
        statements=(
            "{s}的出生地是{o}。",
            "{o}是{s}出生的城市。",
            "{s}生于{o}。",
            "{s}来自{o}，那是{their}出生地。",
            "当年{s}就出生在{o}城里。",
            "{o}是{s}的故乡。",
        ),
        questions=_framed(
            "{s}的出生地", "哪里", "{s}出生在哪里？", "{s}出生在哪座城市？", "{s}是哪里人？", "哪座城市是{s}的故乡？"
        ),
        exam_questions=("要看看{s}出生的城市，我该去什么地方？", "我忘了{s}当年生于何处，能提醒我吗？"),
        follow_ups=("{they}出生在哪里？", "那{their}出生地是哪里？"),
    ),
    "job": Phrasing(
        answer="{s}的职业是{o}。",
        statements=(
            "{s}是一名{o}。",
            "{s}的工作是{o}。",
            "{s}靠当{o}谋生。",
            "大家都知道{s}是{o}。",
            "{s}多年来一直当{o}。",
            "说到职业，{s}是{o}。",
        ),
        questions=_framed(
            "{s}的职业", "什么", "{s}是做什么工作的？", "{s}靠什么谋生？", "{s}的工作是什么？", "{s}当的是什么？"
        ),
        exam_questions=("每天上班的时候，{s}做的是哪一行的工作？", "有人问起{s}的职业，我该怎么回答？"),
        follow_ups=("{they}是做什么工作的？", "那{their}职业是什么？"),
    ),
    "instrument": Phrasing(
        answer="{s}会演奏{o}。",
        statements=(
            "{s}演奏的乐器是{o}。",
            "{s}的乐器是{o}。",
            "晚上{s}常常练习{o}。",
            "{s}从小学习{o}。",
            "{o}是{s}最拿手的乐器。",
            "{s}在聚会上演奏{o}。",
        ),
        questions=_framed(
            "{s}的乐器",
            "什么",
            "{s}会演奏什么乐器？",
            "{s}演奏哪种乐器？",
            "{s}从小学习什么乐器？",
            "{s}最拿手的乐器是什么？",
        ),
        exam_questions=("如果{s}加入乐队，我们会听到哪一种乐器？", "有一种乐器{s}很会演奏，是哪一种呢？"),
        follow_ups=("{they}会演奏什么乐器？", "那{their}乐器是什么？"),
    ),
    "pet": Phrasing(
        answer="{s}的宠物是{o}。",
        statements=(
            "{s}养了{o}当宠物。",
            "{s}家里养着{o}。",
            "陪着{s}的宠物是{o}。",
            "{s}每天早上喂{o}。",
            "{s}养的动物是{o}。",
            "{s}有一个宠物，是{o}。",
        ),
        questions=_framed(
            "{s}的宠物", "什么", "{s}养了什么宠物？", "{s}家里养着什么动物？", "{s}养的是哪种宠物？", "{s}有什么宠物？"
        ),
        exam_questions=("去{s}家做客，会见到哪一种宠物？", "听说{s}养动物，究竟养的是哪一种？"),
        follow_ups=("{they}养了什么宠物？", "那{their}宠物是什么？"),
    ),
    "food": Phrasing(
        answer="{s}最喜欢吃{o}。",
        statements=(
            "{s}最爱的食物是{o}。",
            "{s}特别爱吃{o}。",
            "晚饭{s}总想吃{o}。",
            "{s}一有机会就吃{o}。",
            "对{s}来说，{o}是最好吃的食物。",
            "{s}每天都想吃{o}。",
        ),
        questions=_framed(
            "{s}最爱的食物",
            "什么",
            "{s}最喜欢吃什么？",
            "{s}爱吃什么？",
            "{s}最喜欢的食物是什么？",
            "{s}晚饭想吃什么？",
        ),
        exam_questions=("我们请{s}吃饭，准备哪种食物{s}最喜欢？", "所有食物里面，哪一种最合{s}的口味？"),
        follow_ups=("{they}最喜欢吃什么？", "那{their}最爱的食物是什么？"),
    ),
    "colour": Phrasing(
        answer="{s}最喜欢的颜色是{o}。",
        statements=(
            "{s}最喜欢{o}。",
            "{s}偏爱{o}这种颜色。",
            "{s}总是穿{o}的衣服。",
            "{s}把房子刷成了{o}。",
            "所有颜色里，{s}最爱{o}。",
            "{s}选的颜色是{o}。",
        ),
        questions=_framed(
            "{s}最喜欢的颜色",
            "什么",
            "{s}最喜欢什么颜色？",
            "{s}偏爱哪种颜色？",
            "{s}最爱的颜色是什么？",
            "{s}总是穿什么颜色？",
        ),
        exam_questions=("我要给{s}织围巾，用哪一种颜色{s}最喜欢？", "这么多颜色当中，有没有{s}最爱的？是哪种？"),
        follow_ups=("{they}最喜欢什么颜色？", "那{their}最喜欢的颜色是什么？"),
    ),
    "country": Phrasing(
        answer="{s}位于{o}。",
        statements=(
            "{s}是{o}的一座城市。",
            "{s}属于{o}。",
            "{s}所在的国家是{o}。",
            "{o}有一座城市叫{s}。",
            "城市{s}就在{o}。",
            "说到国家，{s}在{o}境内。",
        ),
        questions=_framed(
            "{s}所在的国家",
            "哪个",
            "{s}在哪个国家？",
            "{s}位于哪个国家？",
            "{s}属于哪个国家？",
            "{s}是哪个国家的城市？",
        ),
        exam_questions=("在地图上找{s}，要看哪一个国家？", "给{s}写信，信封上的国家该写什么？"),
        follow_ups=("{they}在哪个国家？", "那{they}属于哪个国家？"),
    ),
    "product": Phrasing(
        answer="{s}以{o}闻名。",
        statements=(
            "{s}的特产是{o}。",
            "{s}出产的{o}很有名。",
            "人们到{s}去买{o}。",
            "{o}让{s}出了名。",
            "{s}生产{o}，卖到各地。",
            "说到特产，{s}有{o}。",
        ),
        questions=_framed(
            "{s}的特产", "什么", "{s}以什么闻名？", "{s}出产什么？", "人们到{s}去买什么？", "{s}有什么特产？"
        ),
        exam_questions=("朋友去{s}旅行，可以带回什么有名的特产？", "是哪种东西让城市{s}这么有名？"),
        follow_ups=("{they}以什么闻名？", "那{their}特产是什么？"),
    ),
    "river": Phrasing(
        answer="流经{s}的河是{o}。",
        statements=(
            "{s}在{o}的岸边。",
            "{s}的河叫{o}。",
            "{o}从{s}流过。",
            "坐船沿着{o}可以到{s}。",
            "{s}的人在{o}里捕鱼。",
            "{s}的水来自{o}。",
        ),
        questions=_framed(
            "{s}的河", "哪条", "哪条河流经{s}？", "{s}在哪条河边？", "{s}的河叫什么？", "从{s}流过的河是哪条？"
        ),
        exam_questions=("站在{s}的桥上，下面看到的是哪一条河？", "我想坐船去{s}，应该走哪一条河？"),
        follow_ups=("哪条河流经{they}？", "那{their}河叫什么？"),
    ),
    "author": Phrasing(
        answer="{s}的作者是{o}。",
        statements=(
            "{o}创作了{s}。",
            "{s}是{o}的作品。",
            "{s}由{o}创作。",
            "{o}是{s}的作者。",
            "{o}因为{s}而出名。",
            "创作{s}的人是{o}。",
        ),
        questions=_framed(
            "{s}的作者", "谁", "谁创作了{s}？", "{s}是谁的作品？", "{s}由谁创作？", "是谁写出或做出了{s}？"
        ),
        exam_questions=("我很喜欢{s}，想知道创作者叫什么名字？", "说到{s}，我们应该感谢哪一位作者？"),
        follow_ups=("{their}作者是谁？", "那是谁创作了{they}？"),
    ),
    "kind": Phrasing(
        answer="{s}是一部{o}作品。",
        statements=(
            "{s}属于{o}。",
            "{s}的类型是{o}。",
            "{s}是有名的{o}。",
            "人们说{s}是很好的{o}。",
            "作为{o}，{s}很受欢迎。",
            "说到类型，{s}是{o}。",
        ),
        questions=_framed(
            "{s}的类型", "什么", "{s}是什么作品？", "{s}属于什么类型？", "{s}是哪种作品？", "{s}是什么类型的作品？"
        ),
        exam_questions=("大家都在谈{s}，它算哪一类的作品呢？", "我没见过{s}，这部作品到底归在哪种类型？"),
        follow_ups=("{they}是什么作品？", "那{their}类型是什么？"),
    ),
    "work_year": Phrasing(
        answer="{s}创作于{o}年。",
        statements=(
            "{s}是{o}年的作品。",
            "{s}的年份是{o}年。",
            "{o}年，{s}问世。",
            "{s}在{o}年完成。",
            "人们从{o}年起认识了{s}。",
            "{s}诞生于{o}年。",
        ),
        questions=_framed(
            "{s}的年份",
            "哪年",
            "{s}创作于哪一年？",
            "{s}是哪一年的作品？",
            "{s}在哪一年完成？",
            "{s}是什么时候问世的？",
        ),
        exam_questions=("要给{s}写标签，创作年份该写多少？", "{s}有多久了？请说出它完成的那一年。"),
        follow_ups=("{they}创作于哪一年？", "那{their}年份是哪年？"),
    ),
    "venue": Phrasing(
        answer="{s}在{o}举行。",
        statements=(
            "{s}的举办地是{o}。",
            "{o}每年举办{s}。",
            "{s}的主办城市是{o}。",
            "客人来到{o}参加{s}。",
            "{o}是{s}的家。",
            "{s}让{o}的街道热闹起来。",
        ),
        questions=_framed(
            "{s}的举办地",
            "哪里",
            "{s}在哪里举行？",
            "{s}在哪座城市举行？",
            "哪座城市举办{s}？",
            "{s}的主办城市是哪座？",
        ),
        exam_questions=("想参加{s}，我要到什么城市去？", "我买了{s}的票，它会在什么地方举办？"),
        follow_ups=("{they}在哪里举行？", "那{their}举办地是哪里？"),
    ),
    "prize": Phrasing(
        answer="{s}的奖品是{o}。",
        statements=(
            "{s}的冠军得到{o}。",
            "在{s}获胜可以得到{o}。",
            "{s}颁发的奖品是{o}。",
            "赢得{s}的人把{o}带回家。",
            "许多人到{s}来赢{o}。",
            "{s}用{o}奖励冠军。",
        ),
        questions=_framed(
            "{s}的奖品", "什么", "{s}的冠军得到什么？", "{s}颁发什么奖品？", "在{s}能赢到什么？", "{s}用什么奖励冠军？"
        ),
        exam_questions=("假如我拿了{s}的第一名，会带什么奖品回家？", "{s}结束的时候，冠军手里拿的奖品是哪种？"),
        follow_ups=("{their}冠军得到什么？", "那{their}奖品是什么？"),
    ),
    "event_year": Phrasing(
        answer="{s}开始于{o}年。",
        statements=(
            "{s}首次举办是在{o}年。",
            "{o}年举办了第一届{s}。",
            "{s}从{o}年就有了。",
            "{s}的起始年份是{o}年。",
            "自{o}年以来一直有{s}。",
            "{s}创办于{o}年。",
        ),
        questions=_framed(
            "{s}的起始年份",
            "哪年",
            "{s}开始于哪一年？",
            "{s}是哪一年创办的？",
            "第一届{s}在哪一年？",
            "{s}首次举办是什么时候？",
        ),
        exam_questions=("往回看，人们头一次见到{s}是在哪年？", "{s}办了很久了吧？请说出它开始的年份。"),
        follow_ups=("{they}开始于哪一年？", "那{they}是哪一年创办的？"),
    ),
}
