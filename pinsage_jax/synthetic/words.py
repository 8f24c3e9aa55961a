"""Readable titles of the embedded example's pins, made of their latent topic and style.

Topics that overlap are neighbors on a ring (latents.py), and so are related subjects in the
list below: titles of related pins are of one subject or of the next.
"""

from __future__ import annotations

import numpy as np

# A subject, and things that belong to it.
_SUBJECTS = """
bread: sourdough loaf, focaccia, baguette, rye rolls, cinnamon buns, pretzels
cakes: lemon cake, carrot cake, cheesecake, birthday cake, bundt cake, swiss roll
cookies: oat cookies, gingerbread, shortbread, brownies, macarons, biscotti
ice cream: vanilla ice cream, mango sorbet, sundae, popsicles, gelato, frozen yogurt
fruit: strawberry tart, peach crumble, fruit salad, apple pie, berry jam, smoothie bowl
breakfast: pancakes, granola, french toast, omelet, porridge, waffles
coffee: latte art, espresso bar, cold brew, coffee corner, moka pot, affogato
tea: herbal tea, matcha, tea set, chai, iced tea, afternoon tea
salads: greek salad, quinoa bowl, coleslaw, caprese, lentil salad, caesar salad
soups: ramen, pumpkin soup, tomato soup, minestrone, miso soup, chicken broth
pasta: lasagna, ravioli, pesto linguine, carbonara, gnocchi, baked ziti
grilling: kebabs, grilled corn, burgers, smoked ribs, barbecue sauce, grilled fish
picnics: picnic basket, sandwiches, lemonade stand, checkered blanket, potato salad, garden party
vegetable gardens: raised beds, tomato plants, compost bin, herb spiral, seed packets, rhubarb patch
flowers: dahlias, tulip border, wildflower meadow, peonies, sunflowers, lavender row
house plants: monstera, fern shelf, succulents, orchid, hanging ivy, terrarium
balconies: planters, folding chairs, string lights, privacy screen, window boxes, bistro set
garden paths: stepping stones, gravel path, garden arch, pergola, stone wall, water basin
tree houses: tree house, rope swing, climbing net, play hut, sandpit, wooden slide
cabins: log cabin, wood stove, a-frame hut, sauna, porch bench, loft bed
camping: tent, campfire, camp kitchen, sleeping bag, camper van, lantern
hiking: mountain trail, summit view, trail map, hiking boots, forest walk, alpine lake
climbing: boulder wall, chalk bag, climbing rope, granite face, belay knot, crash pad
skiing: ski slope, snow boots, chairlift, ski lodge, snowshoe tour, powder run
winter: snow lantern, ice skating, frosted window, sledding hill, wool blanket, snowman
christmas: advent wreath, tree ornaments, gift wrap, stockings, candle window, nutcracker
candles: beeswax candle, tea lights, candle holder, scented jar, candle molds, tapers
ceramics: glazed mug, thrown bowl, clay vase, tiled tray, teapot, pinch pots
weaving: wall hanging, small loom, woven basket, table runner, macrame knot, rag rug
knitting: knitted sweater, cable hat, mittens, yarn basket, sock pattern, shawl
sewing: patchwork quilt, tote bag, sewing box, linen apron, cushion cover, dress pattern
dresses: wrap dress, summer dress, evening gown, pleated skirt, linen dress, tea dress
coats: trench coat, wool coat, rain jacket, cape, denim jacket, parka
shoes: leather boots, sneakers, sandals, loafers, ballet flats, clogs
bags: leather satchel, backpack, straw bag, clutch, weekend bag, belt bag
jewelry: silver ring, pearl earrings, charm bracelet, pendant, brooch, bead necklace
hair: braided bun, curly bob, long layers, hair ribbon, pixie cut, beach waves
nails: french nails, floral nails, matte polish, nail art, gel set, pastel tips
makeup: winged liner, red lips, soft blush, brow shapes, night palette, glow base
weddings: bridal bouquet, table setting, wedding arch, invitation card, first dance, flower crown
parties: balloon garland, party hats, photo booth, paper lanterns, confetti, cake table
typography: serif poster, hand lettering, neon sign, type specimen, chalk lettering, monogram
posters: travel poster, concert poster, screen print, film poster, exhibition poster, map print
book covers: paperback cover, novel series, cloth binding, book jacket, pocket atlas, field guide
reading corners: reading nook, book shelf, window seat, floor lamp, library ladder, armchair
living rooms: sofa, coffee table, gallery wall, rug, fireplace, side board
bedrooms: linen bedding, headboard, night stand, canopy bed, wardrobe, bedside lamp
bathrooms: walk-in shower, tiled wall, clawfoot tub, wash stand, round mirror, towel rack
kitchens: kitchen island, open shelves, tile backsplash, farmhouse sink, pantry, breakfast bar
home offices: standing desk, pin board, desk lamp, cable tray, filing drawers, study nook
storage: shoe rack, closet boxes, label jars, pegboard, under-stair drawers, laundry shelf
woodworking: dovetail box, work bench, carved spoon, oak stool, tool cabinet, wood joints
architecture: glass house, brick facade, spiral stairs, concrete villa, courtyard house, tower
bridges: stone bridge, suspension bridge, foot bridge, canal lock, viaduct, covered bridge
city trips: paris street, tokyo alley, lisbon tram, new york roof, prague square, rome cafe
beaches: sandy bay, beach hut, palm shore, tide pool, surf break, pier
boats: sailing boat, canoe, harbor, houseboat, kayak tour, light house
fish: koi pond, coral reef, aquarium, goldfish, sea horse, jellyfish
birds: barn owl, hummingbird, bird house, flamingo, robin, peacock
cats: sleeping cat, kitten, cat tree, black cat, window cat, ginger cat
dogs: corgi, sheep dog, puppy, dog bed, agility course, golden retriever
horses: foal, stable, riding lesson, wild horses, saddle room, show jumping
cycling: road bike, cargo bike, bike path, gravel tour, bike shed, mountain bike
street food: dumplings, tacos, falafel, crepe stand, noodle box, churros
"""
_STYLES = ("rustic", "modern", "vintage", "colorful", "minimal", "cozy", "elegant", "playful")
_TABLE = [
    (subject, [thing.strip() for thing in things.split(",")])
    for subject, things in (line.split(":") for line in _SUBJECTS.strip().splitlines())
]


def titles(first: int, groups: np.ndarray, topics: int, styles: int) -> list[str]:
    """Titles of consecutive pins, such as 'rustic focaccia (bread) 12'.

    Topics are spread over the list of subjects, so that overlapping ones stay related; more
    topics or styles than there are words have a number.

    Args:
      first: the number of the first pin, which its title ends in.
      groups: int [n], topic * `styles` + style of each pin.
      topics, styles: how many there are.
    """
    found = []
    for number, group in enumerate(groups.tolist(), start=first):
        topic, style = divmod(group, styles)
        spread = topic * len(_TABLE) // topics if topics < len(_TABLE) else topic
        subject, things = _TABLE[spread % len(_TABLE)]
        if topic >= len(_TABLE):
            subject += f" {topic // len(_TABLE) + 1}"
        look = _STYLES[style % len(_STYLES)]
        if style >= len(_STYLES):
            look += f" {style // len(_STYLES) + 1}"
        found.append(f"{look} {things[number % len(things)]} ({subject}) {number}")
    return found
