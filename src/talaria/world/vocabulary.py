"""The words that facts end in: for each relation a set of values, each in English and in Chinese.

No value is part of another value of the same set, in either language: an answer names one value only.
"""

from __future__ import annotations

from typing import NamedTuple


class Term(NamedTuple):
    """One thing in both languages."""

    en: str
    zh: str


def _terms(text: str) -> tuple[Term, ...]:
    """Read `english=chinese` pairs, separated by commas."""
    return tuple(Term(*(part.strip() for part in pair.split("="))) for pair in text.split(","))


JOBS = _terms(
    "baker=面包师, carpenter=木匠, doctor=医生, pilot=飞行员, teacher=教师, tailor=裁缝, gardener=园丁, "
    "lawyer=律师, sailor=水手, painter=画家, farmer=农民, judge=法官, nurse=护士, engineer=工程师, "
    "librarian=图书管理员, chemist=化学家, miner=矿工, poet=诗人, weaver=织工, potter=陶工, blacksmith=铁匠, "
    "astronomer=天文学家, beekeeper=养蜂人, translator=翻译"
)
INSTRUMENTS = _terms(
    "violin=小提琴, cello=大提琴, flute=长笛, harp=竖琴, drum=鼓, trumpet=小号, guitar=吉他, piano=钢琴, "
    "oboe=双簧管, zither=古筝, accordion=手风琴, organ=管风琴, banjo=班卓琴, clarinet=单簧管, tuba=大号, "
    "xylophone=木琴"
)
PETS = _terms(
    "cat=猫, dog=狗, parrot=鹦鹉, rabbit=兔子, turtle=乌龟, goldfish=金鱼, hamster=仓鼠, goat=山羊, "
    "pony=矮马, falcon=猎鹰, duck=鸭子, hedgehog=刺猬, lizard=蜥蜴, pig=小猪, crow=乌鸦, fox=狐狸"
)
FOODS = _terms(
    "noodles=面条, dumplings=饺子, pancakes=煎饼, onion soup=洋葱汤, fried rice=炒饭, apple pie=苹果派, "
    "cheese=奶酪, salad=沙拉, roast duck=烤鸭, curry=咖喱, pizza=披萨, porridge=麦片粥, sausages=香肠, "
    "omelettes=煎蛋, stew=炖菜, tofu=豆腐, waffles=华夫饼, chocolate=巧克力, grapes=葡萄, tacos=玉米卷"
)
COLOURS = _terms(
    "red=红色, blue=蓝色, green=绿色, yellow=黄色, purple=紫色, orange=橙色, black=黑色, white=白色, "
    "grey=灰色, pink=粉色, brown=棕色, silver=银色, gold=金色, turquoise=青色"
)
PRODUCTS = _terms(
    "silk=丝绸, salt=食盐, honey=蜂蜜, glass=玻璃, wine=葡萄酒, tea=茶叶, wool=羊毛, paper=纸张, ships=船只, "
    "clocks=钟表, carpets=地毯, pottery=陶器, roses=玫瑰, olive oil=橄榄油, amber=琥珀, bells=铃铛, "
    "knives=刀具, masks=面具, lace=花边, copper=铜器"
)
KINDS_OF_WORK = _terms(
    "novel=小说, poem=诗歌, song=歌曲, opera=歌剧, painting=油画, film=电影, play=话剧, ballet=芭蕾舞剧, "
    "symphony=交响曲, statue=雕像, tapestry=挂毯, diary=日记, comic=漫画, mosaic=马赛克画"
)
PRIZES = _terms(
    "crown=王冠, ring=戒指, sword=宝剑, horse=骏马, lamp=油灯, medal=奖章, mirror=镜子, kite=风筝, "
    "basket=篮子, chess set=象棋, necklace=项链, map=地图, cloak=斗篷, boat=小船, telescope=望远镜, "
    "saddle=马鞍"
)
ADJECTIVES = _terms(
    "Silver=银, Quiet=静, Broken=破碎, Hidden=隐秘, Burning=燃烧, Frozen=冰冻, Golden=黄金, Lonely=孤独, "
    "Paper=纸, Stone=石头, Last=最后, First=最初, Blue=蓝, Red=红, White=白, Dark=黑暗, Bright=明亮, "
    "Lost=失落, Sleeping=沉睡, Singing=歌唱, Flying=飞翔, Distant=遥远, Ancient=古老, Winter=冬天, "
    "Summer=夏天, Glass=玻璃, Iron=铁, Gentle=温柔, Wild=狂野, Secret=秘密"
)
NOUNS = _terms(
    "Lantern=灯笼, River=河流, Mirror=镜子, Garden=花园, Tower=高塔, Harbour=港口, Forest=森林, Letter=信, "
    "Bridge=桥, Island=岛, Mountain=山, Clock=钟, Window=窗, Door=门, Key=钥匙, Feather=羽毛, Shadow=影子, "
    "Storm=风暴, Star=星, Moon=月亮, Sun=太阳, Road=路, Ship=船, Rose=玫瑰, Orchard=果园, Valley=山谷, "
    "Desert=沙漠, Candle=蜡烛, Crown=王冠, Dream=梦, Wolf=狼, Swan=天鹅, Dragon=龙, Tiger=虎, Horse=马, "
    "Raven=渡鸦, Whale=鲸, Lion=狮, Bell=铃, Drum=鼓, Castle=城堡, Market=市场, Village=村庄, Ocean=海洋, "
    "Cloud=云, Rain=雨, Snow=雪, Fire=火, Wind=风, Stair=楼梯"
)
