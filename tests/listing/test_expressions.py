"""Expressions over columns against the same rules written in Python, row by row; their errors."""

import ast
import datetime
import inspect

import numpy as np
import pyarrow as pa
import pytest

from pinsage_jax.core.errors import UserError
from pinsage_jax.listing import expressions
from pinsage_jax.listing.expressions import MAX_LENGTH, Expression

ROWS = [
    {"price": 5.0, "stock": 3, "sale": True, "brand": "acme", "tags": ["new", "red"]},
    {"price": 20.0, "stock": 0, "sale": False, "brand": "zeta", "tags": []},
    {"price": None, "stock": None, "sale": None, "brand": None, "tags": None},
    {"price": 0.5, "stock": 9, "sale": True, "brand": "Ébène", "tags": ["red"]},
    {"price": 10.0, "stock": 3, "sale": False, "brand": "acme", "tags": ["old"]},
]
DAYS = ["2024-01-05", "2024-05-31", None, "2023-12-31", "2024-06-01"]
TABLE = pa.table(
    {
        "price": pa.array([row["price"] for row in ROWS], pa.float64()),
        "stock": pa.array([row["stock"] for row in ROWS], pa.int64()),
        "sale": pa.array([row["sale"] for row in ROWS], pa.bool_()),
        "brand": pa.array([row["brand"] for row in ROWS], pa.large_string()),
        "tags": pa.array([row["tags"] for row in ROWS], pa.list_(pa.large_string())),
        "Brand Name": pa.array([row["brand"] for row in ROWS], pa.large_string()),
        "day": pa.array([d and datetime.date.fromisoformat(d) for d in DAYS], pa.date32()),
        "vector": pa.array([[1.0]] * 5, pa.list_(pa.float32())),
    }
)
TYPES = {field.name: field.type for field in TABLE.schema}


def column(name):
    return TABLE.column(name).combine_chunks()


def holds(text, query=None):
    """Rows where the expression holds, for one query row or for the pairs (row r, row 4 - r)."""
    parsed = Expression(text, "--where", TYPES, numeric=False)
    if query is not None:
        return parsed.holds(column, lambda name: column(name)[query], 5).tolist()
    reverse = pa.array([4, 3, 2, 1, 0])
    return parsed.holds(column, lambda name: column(name).take(reverse), 5).tolist()


def expected(rule, query=None):
    """The rule of (item, query) in Python; a missing value makes it false (TypeError)."""
    result = []
    for number, item in enumerate(ROWS):
        try:
            result.append(bool(rule(item, ROWS[4 - number if query is None else query])))
        except TypeError:
            result.append(False)
    return result


def known(*values):
    if any(value is None for value in values):
        raise TypeError
    return values


@pytest.mark.parametrize("query", [None, 0, 1, 2])
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("price < 15", lambda i, q: i["price"] < 15),
        ("sale", lambda i, q: i["sale"]),
        ("not sale", lambda i, q: not known(i["sale"])[0]),
        ("sale == True and stock > 2", lambda i, q: i["sale"] and i["stock"] > 2),
        ("price < 2 * query.price", lambda i, q: i["price"] < 2 * q["price"]),
        ("brand == query.brand", lambda i, q: i["brand"] == q["brand"] and known(i["brand"])),
        ("brand != query.brand", lambda i, q: known(i["brand"])[0] != known(q["brand"])[0]),
        ("1 < price <= 10", lambda i, q: 1 < i["price"] <= 10),
        ("price - stock / 2 + 1 > -3", lambda i, q: i["price"] - i["stock"] / 2 + 1 > -3),
        ("brand in ['acme', 'zeta']", lambda i, q: known(i["brand"])[0] in ("acme", "zeta")),
        ("brand not in ['acme']", lambda i, q: known(i["brand"])[0] not in ("acme",)),
        ("stock in (0, 9.0)", lambda i, q: known(i["stock"])[0] in (0, 9)),
        ("'red' in tags", lambda i, q: "red" in i["tags"]),
        ("'red' not in tags", lambda i, q: "red" not in i["tags"]),
        ("'red' in query.tags", lambda i, q: "red" in q["tags"]),
        ("'b' in brand", lambda i, q: "b" in i["brand"]),
        ("price is None", lambda i, q: i["price"] is None),
        ("brand is not None", lambda i, q: i["brand"] is not None),
        ("stock == 3 or price == 20", lambda i, q: i["stock"] == 3 or i["price"] == 20),
        ("query.sale", lambda i, q: q["sale"]),
        ("price > query.price or sale", lambda i, q: i["sale"] or i["price"] > q["price"]),
        ("sale * 2 + 1 > 2", lambda i, q: known(i["sale"])[0] * 2 + 1 > 2),
        ("item['Brand Name'] == 'Ébène'", lambda i, q: i["brand"] == "Ébène"),
        ("query['Brand Name'] == 'acme'", lambda i, q: q["brand"] == "acme"),
        ("true and 1 < 2", lambda i, q: True),
        ("(price\n > 15)", lambda i, q: i["price"] > 15),
        ("price / 0 > 1", lambda i, q: known(i["price"])),
    ],
)
def test_every_construct_equals_python(text, rule, query):
    assert holds(text, query) == expected(rule, query)


def test_missing_values_follow_three_valued_logic():
    # Unknown or true is true; unknown and true, and not unknown, are not.
    assert holds("price > 1 or True", 0) == [True] * 5
    assert holds("not (price > 100)", 0) == [True, True, False, True, True]
    assert holds("not (price > 1 and False)", 0) == [True] * 5


def test_times_are_compared_with_iso_text_and_each_other():
    assert holds("day >= '2024-05-31'", 0) == [False, True, False, False, True]
    assert holds("'2024-01-01' < day < '2024-05-31T12:00'", 0) == [True, True, False, False, False]
    assert holds("day in ['2024-05-31']", 0) == [False, True, False, False, False]
    assert holds("day > query.day", 0) == [False, True, False, False, True]


def test_whole_numbers_are_not_rounded_and_do_not_overflow():
    large = 2**53 + 1
    table = pa.array([large, large + 1, 2**62])
    parsed = Expression(f"n == {large}", "w", {"n": pa.int64()}, numeric=False)
    assert parsed.holds(lambda name: table, None, 3).tolist() == [True, False, False]
    parsed = Expression("n * n > 0", "w", {"n": pa.int64()}, numeric=False)
    assert parsed.holds(lambda name: table, None, 3).all()


def test_numbers_have_a_value_where_one_is_missing():
    parsed = Expression("1 + 0.5 * sale", "--boost", TYPES, numeric=True)
    assert parsed.numbers(column, None, 5, 1.0).tolist() == [1.5, 1.0, 1.0, 1.5, 1.0]
    constant = Expression("2", "--boost", TYPES, numeric=True)
    assert constant.numbers(column, None, 3, 1.0).tolist() == [2.0] * 3


def test_the_columns_that_are_read_are_known():
    parsed = Expression("sale and price < query.stock", "w", TYPES, numeric=False)
    assert parsed.item_columns == {"sale", "price"} and parsed.query_columns == {"stock"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prce < 3", r"'prce' at character 1: there is no column 'prce'; did you mean 'price'\?$"),
        ("sale and xyz", r"'xyz' at character 10: .* columns are those of --items: price, "),
        ("price < 'a'", r"'price < 'a'' at character 1: this compares a number with text"),
        ("  price <", r"not an expression \(invalid syntax at character \d+\)"),
        ("price = 3", r"not an expression"),
        ("", r"is empty"),
        ("price", r"'price' at character 1: this is a number, not yes or no"),
        ("not price", r"'price' at character 5: this is a number, not yes or no"),
        ("sale < True", r"yes and no have no order"),
        ("day > 'soon'", r"'soon' is no time; write 2024-05-31"),
        ("day > 3", r"compares a time with a number"),
        ("tags == 'red'", r"compares a list with text"),
        ("brand in price", r"looks for text in a number"),
        ("brand in query.brand", r"only constant text"),
        ("brand in [price]", r"a list after in holds constants"),
        ("brand in ['a', 3]", r"'3' at character 16: this is a number, compared with text"),
        ("price < None", r"None has no order"),
        ("price is 3", r"are for None"),
        ("vector is None", r"holds list<.*>, which is not read"),
        ("price ** 2 > 1", r"only \+ - \* / are"),
        ("~stock > 1", r"only - and not"),
        ("brand + 'a' == 'b'", r"this is text, not a number"),
        ("item[price] > 1", r"is quoted"),
        ("'é' == brand and prce > 1", r"'prce' at character 18"),
        ("__import__('os').system('true')", r"only columns, constants"),
        ("price.__class__ == 1", r"only query.COLUMN and item.COLUMN"),
        ("query.__class__ == 1", r"no column '__class__'"),
        ("(lambda: 1)() == 1", r"only columns"),
        ("[x for x in tags] == 1", r"only columns"),
        ("f'{price}' == 'a'", r"only columns"),
        ("(y := 3) == 3", r"only columns"),
        ("brand == b'a'", r"only numbers, text"),
        ("1e999 > price", r"too large"),
        ("(" * 300 + "1" + ")" * 300, r"cannot be read|not an expression"),
        ("not " * 200 + "sale", r"cannot be read"),
        ("sale" + " " * MAX_LENGTH + "and sale", r"characters, more than"),
        ("sale \0", r"cannot be read|not an expression"),
    ],
)
def test_errors_name_the_place(text, message):
    with pytest.raises(UserError, match=message):
        Expression(text, "--where", TYPES, numeric=False)


def test_a_boost_is_a_number():
    with pytest.raises(UserError, match="this is text, not a number"):
        Expression("brand", "--boost", TYPES, numeric=True)


def test_nothing_evaluates_python():
    tree = ast.parse(inspect.getsource(expressions))
    called = {node.func.id for node in ast.walk(tree)
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}  # fmt: skip
    assert not called & {"eval", "exec", "compile", "__import__"}


def test_random_numbers_equal_numpy(small_rng):
    one, other = small_rng.normal(size=200), small_rng.normal(size=200)
    parsed = Expression(
        "-(a * 2 - query.a) / 3 < a + 0.5 and not a < -1", "w", {"a": pa.float64()}, numeric=False
    )
    found = parsed.holds(lambda name: pa.array(one), lambda name: pa.array(other), 200)
    assert (found == ((-(one * 2 - other) / 3 < one + 0.5) & ~(one < -1))).all()
    assert found.dtype == np.bool_
